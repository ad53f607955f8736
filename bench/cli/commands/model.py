"""Write a trained network as a file, with a card."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional

from bench.cli.parsing import Command
from bench.protocol.options import StoreFolder, option


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Write a trained network as a file that takes images in [0, 1], and a card FILE.md.

    A row is SUITE/DATASET/STUDENT/METHOD, as digits/digits/resnet8-w8/rslad, with /VARIANT for a
    row that has one; of its seeds the robust accuracy on validation images chooses.
    """

    source: Positional[
        Annotated[str, option("RUN|ROW", "id of an MLflow run, its first digits, or of a spec")]
    ]
    out: Annotated[Path, option("FILE", "a new file")]
    format: Annotated[
        str, option("safetensors|state-dict|onnx|torch-export", None, "by FILE's suffix")
    ] = ""
    checkpoint: Annotated[
        Literal["best", "last", "ema", "swa"], option(text="of the run; validation chose best")
    ] = "best"
    store: StoreFolder = Path("runs")


def write_model(options: ModelOptions) -> None:
    """Write the file and its card, and print their paths."""
    from bench.cli.model_files import render_model
    from bench.models import formats
    from bench.records import trained
    from bench.system.errors import UsageError
    from bench.system.files import save_file

    path, name = options.out, options.checkpoint
    form = formats.choose_format(path, options.format)
    card_path = path.with_name(f"{path.name}.md")
    for file in (path, card_path):
        if file.exists():
            raise UsageError(f"{str(file)!r} exists: choose another file with --out")
    record = trained.find_record(options.store, options.source)
    content, card = render_model(record, options.store, name, path.name, form)
    for file, text in ((path, content), (card_path, card.encode())):
        save_file(file, text)
        print(file)


COMMAND = Command(ModelOptions, write_model)
