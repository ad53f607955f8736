"""A search for devices: single images in the slots of full passes; no step waits for the device.

`attacks.components` goes through official batches one after another; here images of several batches
share a pass, and each batch draws what it would draw alone. An image counts as fooled only after
the reference model, in full precision, misclassifies it in the ball.
"""
