"""Check such files and copy them into a store."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional

from bench.cli.parsing import Command
from bench.protocol.options import CommonOptions, Switch, option


@dataclass(frozen=True, kw_only=True)
class ImportOptions(CommonOptions):
    """Check records and take them into the store; one that is wrong is refused in a line.

    Another spec, suite version or checksum than it states, accuracies that its verdicts on single
    images do not give, and other numbers for a spec that is recorded already are refused.
    """

    sources: Positional[Annotated[tuple[Path, ...], option("FILE-OR-DIR", "records")]]
    verify: Annotated[Switch, option(text="evaluate again, and refuse other numbers")] = False
    checkpoint: Annotated[
        Path | None, option("FILE", "for --verify, or `hf:OWNER/NAME:FILE`", "as recorded")
    ] = None


def import_records(options: ImportOptions) -> int:
    """Take the records; return 1 if one was refused."""
    from bench.models import hub
    from bench.records import import_

    checkpoint = hub.locate(options.checkpoint)[0] if options.checkpoint else None
    return import_.import_records(
        options.store, options.sources, options.data_root, options.device, options.verify,
        checkpoint)  # fmt: skip


COMMAND = Command(ImportOptions, import_records)
