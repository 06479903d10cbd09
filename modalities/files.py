"""Real files to arrays and back: pictures through PIL, video through PyAV, sound through soundfile and soxr.

A file is judged by its content, not by its suffix. Whatever cannot be decoded raises DataError with its origin and the
reason. PyAV, soundfile and soxr are imported when first needed, by the process that decodes.
"""

from __future__ import annotations

import importlib
import io
import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError
from torch import Tensor

from core.errors import ConfigError, DataError

Media = bytes | Path | np.ndarray

# No format that runs an interpreter (PostScript) or that is not a picture.
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
PICTURE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
# A frame counts as shown from this many seconds before its time: containers round times, to as much as 1 ms.
ROUNDING = 1e-3
SMALLEST_SIDE = 256  # pixels; smaller clips and grids are enlarged when written


def need(module: str) -> ModuleType:
    """A package of the `media` extra, or one line that says how to get it."""
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: the wrapper is there, its C library is not
        raise ConfigError(f"{module} is needed for this file: pip install -e '.[media]' ({error})") from error


def _stream(media: bytes | Path, origin: str) -> io.BytesIO | str:
    """What the decoding libraries open; refuses what is missing or empty."""
    if isinstance(media, bytes):
        size = len(media)
    else:
        try:
            size = media.stat().st_size if not media.is_dir() else None
        except OSError as error:
            raise DataError(f"{origin}: cannot be read: {error.strerror}") from error
        if size is None:
            raise DataError(f"{origin}: is a folder, not a file")
    if size == 0:
        raise DataError(f"{origin}: the file is empty (0 bytes)")
    return io.BytesIO(media) if isinstance(media, bytes) else str(media)


@contextmanager
def _decoding(origin: str, what: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn a library's own errors into a DataError."""
    try:
        yield
    except errors as error:
        # The plain reason where the library keeps it apart; its full message may hold a memory address.
        reason = getattr(error, "error_string", None) or getattr(error, "strerror", None) or str(error)
        if isinstance(error, UnidentifiedImageError):
            reason = f"not one of {', '.join(PICTURE_FORMATS)}"
        raise DataError(f"{origin}: cannot be decoded as {what}: {' '.join(reason.split())}") from error


def _check_array(media: np.ndarray, origin: str, dims: int, dtype: type, meaning: str) -> None:
    if media.ndim != dims or media.dtype != dtype or 0 in media.shape:
        raise DataError(f"{origin}: expected {np.dtype(dtype)} {meaning}, got {media.dtype} of shape {media.shape}")


# Pictures


def read_image(media: Media, origin: str, background: Sequence[int] = (255, 255, 255)) -> np.ndarray:
    """uint8 (H, W, 3): upright by its EXIF tag, alpha composited on `background`, 16-bit grey reduced to 8 bits.

    Of an animated file the first picture is taken.
    """
    if isinstance(media, np.ndarray):
        _check_array(media, origin, 3, np.uint8, "(H, W, 3)")
        if media.shape[2] != 3:
            raise DataError(f"{origin}: expected uint8 (H, W, 3), got shape {media.shape}")
        return media
    source = _stream(media, origin)
    with _decoding(origin, "a picture", *PICTURE_ERRORS), Image.open(source, formats=PICTURE_FORMATS) as picture:
        return np.array(_to_rgb(ImageOps.exif_transpose(picture), origin, background))


def _to_rgb(picture: Image.Image, origin: str, background: Sequence[int]) -> Image.Image:
    if picture.mode == "F":
        raise DataError(f"{origin}: a picture of float values has no defined range")
    if picture.mode.startswith("I"):  # 16-bit grey; PIL's own conversion would clip it at 255
        grey = np.asarray(picture).astype(np.float64) / 257
        return Image.fromarray(grey.round().clip(0, 255).astype(np.uint8)).convert("RGB")
    if "A" in picture.mode or "a" in picture.mode or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        canvas = Image.new("RGBA", picture.size, (*background, 255))
        return Image.alpha_composite(canvas, picture).convert("RGB")
    return picture.convert("RGB")


# Video


@dataclass(frozen=True)
class VideoIndex:
    """Which frames a video has, known without decoding them.

    Attributes:
        pts: (F,) int64 time stamps in display order, in the container's unit.
        times: (F,) seconds since the first frame.
        seconds: end of the last frame.
    """

    pts: np.ndarray
    times: np.ndarray
    seconds: float

    def count(self, fps: float) -> int:
        """Frames that the video fills at a rate."""
        return math.ceil((self.seconds - ROUNDING) * fps)

    def shown(self, start: float, fps: float, frames: int) -> np.ndarray:
        """(n,) the frame on screen at start, start + 1/fps, ...; n < frames where the video ends before."""
        wanted = start + np.arange(frames) / fps
        wanted = wanted[wanted < self.seconds - ROUNDING]
        return np.searchsorted(self.times, wanted + ROUNDING, side="right") - 1


def index_video(media: Media, origin: str, rate: float | None = None) -> VideoIndex:
    """The frames of a video file, or of a uint8 (T, H, W, 3) array at `rate` frames per second."""
    if isinstance(media, np.ndarray):
        _check_array(media, origin, 4, np.uint8, "(T, H, W, 3)")
        if not rate or rate <= 0:
            raise DataError(f"{origin}: frames without a rate (frames per second), got {rate}")
        order = np.arange(len(media))
        return VideoIndex(order, order / rate, len(media) / rate)
    source, av = _stream(media, origin), need("av")
    with _decoding(origin, "a video", av.error.FFmpegError), av.open(source) as container:
        stream = _video_stream(av, container, origin)
        promised, unit = stream.frames, float(stream.time_base)
        # The last packet is empty. A file that was cut short has fewer packets than its header promises.
        packets = [
            (packet.dts if packet.pts is None else packet.pts, packet.duration or 0)
            for packet in container.demux(stream)
            if packet.size and not packet.is_corrupt and not packet.is_discard
        ]
        fallback = 1 / float(stream.average_rate or 25)
    if any(pts is None for pts, _ in packets):
        raise DataError(f"{origin}: the video has frames without a time stamp")
    durations = dict(packets)
    pts = np.array(sorted(durations), dtype=np.int64)
    if len(pts) == 0:
        raise DataError(f"{origin}: the video has no frames")
    if len(packets) < promised:
        raise DataError(f"{origin}: cut short: {len(packets)} of {promised} frames are there")
    times = (pts - pts[0]) * unit
    return VideoIndex(pts, times, float(times[-1]) + (durations[int(pts[-1])] * unit or fallback))


def read_frames(media: Media, origin: str, index: VideoIndex, wanted: np.ndarray) -> np.ndarray:
    """uint8 (len(wanted), H, W, 3): frames by their number in `index`, from the key frame before the first on."""
    if isinstance(media, np.ndarray):
        return media[wanted]
    stamps = [int(pts) for pts in index.pts[wanted]]
    av = need("av")
    found: dict[int, np.ndarray] = {}
    with _decoding(origin, "a video", av.error.FFmpegError):
        # Some containers seek to a place behind the frame: then decode from the beginning.
        for seek in (True, False) if min(stamps) > index.pts[0] else (False,):
            if not set(stamps) <= found.keys():
                found = _decode(av, media, origin, set(stamps), seek)
    missing = sorted(set(stamps) - found.keys())
    if missing:
        raise DataError(f"{origin}: {len(missing)} of {len(set(stamps))} frames cannot be decoded")
    frames = [found[pts] for pts in stamps]
    if len({frame.shape for frame in frames}) > 1:
        raise DataError(f"{origin}: the size of the picture changes within the clip")
    return np.stack(frames)


def _decode(av: ModuleType, media: bytes | Path, origin: str, stamps: set[int], seek: bool) -> dict[int, np.ndarray]:
    found = {}
    with av.open(_stream(media, origin)) as container:
        stream = _video_stream(av, container, origin)
        # One thread: workers are the parallelism, and threads of FFmpeg do not survive a fork.
        stream.codec_context.thread_count = 1
        # By default FFmpeg paints over damaged places without a word. What the codec cannot notice still passes:
        # h264 has no checksums.
        stream.codec_context.options = {"err_detect": "explode"}
        if seek:
            container.seek(min(stamps), stream=stream)
        for frame in container.decode(stream):
            pts = frame.dts if frame.pts is None else frame.pts
            if pts in stamps and not frame.is_corrupt:
                found[pts] = frame.to_ndarray(format="rgb24")
            if pts is not None and pts >= max(stamps):
                break
    return found


def _video_stream(av: ModuleType, container, origin: str):
    cover = av.stream.Disposition.attached_pic  # the picture of a song is a video stream too
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        raise DataError(f"{origin}: has no video stream")
    if "_pipe" in container.format.name or container.format.name in ("image2", "tty"):
        raise DataError(f"{origin}: is not a video but {container.format.name.removesuffix('_pipe')}")
    return streams[0]


# Sound


@dataclass(frozen=True)
class AudioInfo:
    """samples (of one channel), rate in Hz, channels."""

    samples: int
    rate: int
    channels: int


def probe_audio(media: Media, origin: str, rate: float | None = None) -> AudioInfo:
    """Length, rate and channels of a sound file, or of a float32 (samples, channels) array at `rate` Hz."""
    if isinstance(media, np.ndarray):
        _check_array(media, origin, 2, np.float32, "(samples, channels)")
        if not rate or rate != int(rate) or rate < 1:
            raise DataError(f"{origin}: samples without a whole rate in Hz, got {rate}")
        return AudioInfo(media.shape[0], int(rate), media.shape[1])
    source, soundfile = _stream(media, origin), need("soundfile")
    with _decoding(origin, "a sound", soundfile.SoundFileError), soundfile.SoundFile(source) as file:
        info = AudioInfo(file.frames, file.samplerate, file.channels)
    if info.samples == 0:
        raise DataError(f"{origin}: the sound has no samples")
    _check_riff(media, origin)
    return info


def _check_riff(media: bytes | Path, origin: str) -> None:
    """libsndfile silently shortens a WAV file that was cut; its header still knows the size."""
    if isinstance(media, bytes):
        header, size = media[:8], len(media)
    else:
        with media.open("rb") as file:
            header, size = file.read(8), media.stat().st_size
    promised = int.from_bytes(header[4:], "little") + 8
    # A program that wrote to a pipe could not fill in the size: 0 or the largest number. The padding byte of an odd
    # last chunk is often left out.
    if header[:4] == b"RIFF" and size + 1 < promised < 0xFFFFFF00:
        raise DataError(f"{origin}: cut short: {size} of {promised} bytes are there")


def read_audio(media: Media, origin: str, start: int, count: int) -> np.ndarray:
    """float32 (count, channels) at the file's own rate, from sample `start` on; integer formats lie in [-1, 1)."""
    if isinstance(media, np.ndarray):
        return media[start : start + count]
    source, soundfile = _stream(media, origin), need("soundfile")
    with _decoding(origin, "a sound", soundfile.SoundFileError), soundfile.SoundFile(source) as file:
        if start:
            file.seek(start)
        samples = file.read(count, dtype="float32", always_2d=True)
    if len(samples) < count:
        raise DataError(f"{origin}: cut short: {len(samples)} of {count} samples can be read from {start} on")
    return samples


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """(S, channels) at `rate` -> (about S * wanted / rate, channels) at `wanted`, aligned at sample 0."""
    if rate == wanted:
        return samples
    return need("soxr").resample(samples, rate, wanted, quality="HQ")


# Writing


def with_suffix(path: Path, suffix: str) -> Path:
    """`path` with the suffix added unless it is there; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path if path.suffix.lower() == suffix else path.with_name(path.name + suffix)


def to_bytes(media: Tensor) -> np.ndarray:
    """(..., 3, H, W) in [-1, 1], clipped -> uint8 (..., H, W, 3)."""
    levels = ((media.detach().cpu().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return levels.movedim(-3, -1).contiguous().numpy()


def _enlarge(pixels: np.ndarray, smallest: int) -> np.ndarray:
    """uint8 (..., H, W, 3), each pixel a square, by the least whole factor that makes the short side `smallest`."""
    factor = max(1, math.ceil(smallest / min(pixels.shape[-3:-1])))
    return pixels.repeat(factor, axis=-3).repeat(factor, axis=-2)


def write_image(image: Tensor, path: Path) -> Path:
    """(3, H, W) in [-1, 1] -> PNG at its own size."""
    path = with_suffix(Path(path), ".png")
    Image.fromarray(to_bytes(image)).save(path)
    return path


def write_grid(images: Tensor, path: Path, columns: int | None = None, labels: Sequence[str] = ()) -> Path:
    """(B, 3, H, W) in [-1, 1] -> one PNG, `columns` beside each other (default: square), small ones enlarged.

    Args:
        labels: a short text under each picture, or none.
    """
    tiles = _enlarge(to_bytes(images), SMALLEST_SIDE // 2)
    count, height, width, _ = tiles.shape
    columns = columns or math.ceil(math.sqrt(count))
    gap, text = 4, 14 if labels else 0
    rows = math.ceil(count / columns)
    sheet = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap + text) + gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for i, tile in enumerate(tiles):
        x, y = gap + i % columns * (width + gap), gap + i // columns * (height + gap + text)
        sheet.paste(Image.fromarray(tile), (x, y))
        if i < len(labels):
            label = labels[i]
            while label and font.getlength(label) > width:
                label = label[:-1]
            draw.text((x, y + height), label, fill="black", font=font)
    path = with_suffix(Path(path), ".png")
    sheet.save(path)
    return path


def write_video(video: Tensor, path: Path, fps: float) -> Path:
    """(T, 3, H, W) in [-1, 1] -> MP4, h264 where FFmpeg has it, else mpeg4; small clips are enlarged for players."""
    av, path = need("av"), with_suffix(Path(path), ".mp4")
    frames = _enlarge(to_bytes(video), SMALLEST_SIDE)
    # 4:2:0 chroma needs even sides: repeat the last row or column.
    odd = [(0, side % 2) for side in frames.shape[1:3]]
    frames = np.pad(frames, [(0, 0), *odd, (0, 0)], mode="edge")
    name = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    options = {"crf": "12"} if name == "libx264" else {"qmin": "1", "qmax": "3"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(name, rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def write_audio(sound: Tensor, path: Path, rate: int) -> Path:
    """(channels, samples) in [-1, 1], clipped -> 16-bit PCM WAV."""
    path = with_suffix(Path(path), ".wav")
    samples = sound.detach().cpu().float().clamp(-1, 1).T.contiguous().numpy()
    need("soundfile").write(str(path), samples, rate, subtype="PCM_16")
    return path
