"""Which file suffixes mean which medium, and what reads them: a file is a record by its suffix, decoded by its content.

Suffixes whose decoder is an optional package are taken only where that is installed; sources count the others.
"""

from __future__ import annotations

from importlib.util import find_spec

from PIL import features

# What reads a file of that suffix. Pillow's own formats and those of libsndfile need nothing but Pillow and soundfile.
READERS: dict[str, dict[str, tuple[str, ...]]] = {
    "image": {
        "Pillow": (
            *(".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
            *(".apng", ".dib", ".jfif", ".jif", ".jpe", ".mpo", ".pbm", ".pgm", ".pnm", ".ppm", ".qoi"),
        ),
        "Pillow with OpenJPEG": (".j2k", ".jp2", ".jpf", ".jpx"),
        "Pillow 11.3 or pillow-avif-plugin": (".avif", ".avifs"),
        "pillow-heif": (".heic", ".heif", ".hif"),
        "pillow-jxl-plugin": (".jxl",),
    },
    "audio": {
        "soundfile": (
            *(".wav", ".flac", ".mp3", ".ogg", ".opus", ".aiff"),
            *(".aif", ".aifc", ".au", ".bwf", ".caf", ".mp2", ".mpga", ".oga", ".rf64", ".snd", ".sph", ".w64"),
            ".wave",
        ),
        "av": (
            *(".m4a", ".aac", ".ac3", ".amr", ".ape", ".m4b", ".m4r", ".mka", ".mpc", ".spx", ".tta", ".weba"),
            *(".wma", ".wv"),
        ),
    },
    "video": {
        "av": (
            *(".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"),
            *(".3g2", ".3gp", ".asf", ".dv", ".f4v", ".flv", ".h264", ".hevc", ".m1v", ".m2t", ".m2ts", ".m2v", ".mj2"),
            *(".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob"),
            ".wmv",
        ),
    },
}


def readable(modality: str) -> tuple[str, ...]:
    """Lower-case suffixes of the files that can be decoded here, the usual ones first.

    Those of `av` and `soundfile` are always among them: where these are missing, one line says so and how to get them.
    """
    return tuple(suffix for reader, suffixes in READERS[modality].items() if _is_there(reader) for suffix in suffixes)


def unreadable(modality: str) -> dict[str, str]:
    """Suffix -> the package that would decode it and is not installed here."""
    return {
        suffix: reader for reader, suffixes in READERS[modality].items() if not _is_there(reader) for suffix in suffixes
    }


def _is_there(reader: str) -> bool:
    match reader:
        case "Pillow with OpenJPEG":
            return bool(features.check("jpg_2000"))
        case "Pillow 11.3 or pillow-avif-plugin":
            return ("avif" in features.modules and features.check("avif")) or find_spec("pillow_avif") is not None
        case "pillow-heif":
            return find_spec("pillow_heif") is not None
        case "pillow-jxl-plugin":
            return find_spec("pillow_jxl") is not None
        case _:
            return True
