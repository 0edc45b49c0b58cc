"""Small video files whose frames tell their number: a bright square that moves, on a grey that rises."""

import numpy as np


def frames(number, height=16, width=24, channels=3):
    clip = np.zeros((number, height, width, channels), dtype=np.uint8)
    for t in range(number):
        clip[t] = 20 + 6 * t
        clip[t, 4:8, (t % (width - 4)) : (t % (width - 4)) + 4] = 250
    return clip


def write(path, clip, *, codec="ffv1", pixels=None, gop=4, rate=10):
    """Write frames ``[T, H, W, C]`` without loss where the codec has none."""
    import av

    grey = clip.shape[-1] == 1
    pixels = pixels or ("gray" if grey else "bgr0")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *clip.shape[1:3], pixels
        stream.codec_context.gop_size = gop
        for image in clip:
            frame = av.VideoFrame.from_ndarray(image[..., 0] if grey else image, format="gray" if grey else "rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path
