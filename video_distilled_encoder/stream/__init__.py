"""Features of the newest camera frames, encoded in the background, with their age and what was dropped.

>>> with Stream(encoder) as stream:       # an Encoder, or what load_runtime returns
...     camera.on_frame(stream.put)       # does not wait for the encoder
...     for result in stream:             # or stream.get(timeout=0.1), await stream.get_async(), async for
...         act(result.features, result.age)

A camera is mostly faster than an encoder, or now and then. Frames that queue up grow old, and a robot that acts on old
features acts wrongly; so a newer frame takes the place of one that still waits, and a newer result that of one that
nobody has taken.

Frames of several cameras are put by name, `stream.put(frame, camera="wrist")`. The newest of each are encoded in one
call, and each comes back as a result of its own, with its own number, capture time and age.
"""

from video_distilled_encoder.stream.exchange import StreamResult, StreamTotals
from video_distilled_encoder.stream.stream import Stream

__all__ = ["Stream", "StreamResult", "StreamTotals"]
