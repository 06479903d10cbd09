"""tf.train.Example through protobuf, without TensorFlow: names to lists of bytes, floats or integers.

The message type is built here, in a pool of its own, so that TensorFlow's may live in the same process.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from core.errors import DataError
from core.optional import need

# name of the list -> number in Feature, type of its values
LISTS = {"bytes_list": (1, "TYPE_BYTES"), "float_list": (2, "TYPE_FLOAT"), "int64_list": (3, "TYPE_INT64")}


@cache
def example_type() -> Any:
    """The class of the message. Raises ConfigError where protobuf is missing."""
    pb = need("google.protobuf.descriptor_pb2", "kind: rlds", "All other sources work")
    pool = need("google.protobuf.descriptor_pool", "kind: rlds", "All other sources work").DescriptorPool()
    factory = need("google.protobuf.message_factory", "kind: rlds", "All other sources work")
    file = pb.FileDescriptorProto(name="example.proto", package="selfflow", syntax="proto3")
    field = pb.FieldDescriptorProto

    def message(name: str, *fields: Any, inside: Any = None, **options: Any) -> Any:
        found = file.message_type.add() if inside is None else inside.nested_type.add()
        found.name = name
        found.field.extend(fields)
        return found

    for name, (_, kind) in LISTS.items():
        message(_type(name), field(name="value", number=1, type=getattr(field, kind), label=field.LABEL_REPEATED))
    feature = message("Feature")
    feature.oneof_decl.add(name="kind")
    for name, (number, _) in LISTS.items():
        feature.field.add(
            name=name,
            number=number,
            type=field.TYPE_MESSAGE,
            type_name=f".selfflow.{_type(name)}",
            label=field.LABEL_OPTIONAL,
            oneof_index=0,
        )
    one, many = field.LABEL_OPTIONAL, field.LABEL_REPEATED
    features = message(
        "Features",
        field(
            name="feature",
            number=1,
            type=field.TYPE_MESSAGE,
            type_name=".selfflow.Features.FeatureEntry",
            label=many,
        ),
    )
    entry = message(
        "FeatureEntry",
        field(name="key", number=1, type=field.TYPE_STRING, label=one),
        field(name="value", number=2, type=field.TYPE_MESSAGE, type_name=".selfflow.Feature", label=one),
        inside=features,
    )
    entry.options.map_entry = True
    message(
        "Example",
        field(name="features", number=1, type=field.TYPE_MESSAGE, type_name=".selfflow.Features", label=one),
    )
    pool.Add(file)
    return factory.GetMessageClass(pool.FindMessageTypeByName("selfflow.Example"))


def _type(name: str) -> str:
    """bytes_list -> BytesList"""
    return "".join(word.capitalize() for word in name.split("_"))


class Example:
    """One record. Values are copied out of it when they are asked for.

    Raises DataError for bytes that are no Example.
    """

    def __init__(self, data: bytes, origin: str):
        self.origin = origin
        try:
            self._features = example_type().FromString(data).features.feature
        except Exception as error:  # protobuf's DecodeError, and what its versions raise besides
            if type(error).__name__ != "DecodeError":
                raise
            raise DataError(f"{origin}: no tf.train.Example: {error}") from error

    def names(self) -> list[str]:
        return sorted(self._features)

    def count(self, name: str) -> int:
        """Values of a feature; 0 for one that is not there."""
        return len(self._values(name, wanted=None)) if name in self._features else 0

    def numbers(self, name: str) -> np.ndarray:
        """(n,) float32 or int64."""
        kind, values = self._kind(name), self._values(name, wanted=None)
        if kind == "bytes_list":
            raise DataError(f"{self.origin}: {name} holds bytes, numbers are needed")
        return np.array(values, dtype=np.float32 if kind == "float_list" else np.int64)

    def byte_strings(self, name: str) -> list[bytes]:
        return list(self._values(name, wanted="bytes_list"))

    def _kind(self, name: str) -> str:
        if name not in self._features:
            raise DataError(f"{self.origin}: has no {name}")
        return self._features[name].WhichOneof("kind") or "float_list"

    def _values(self, name: str, wanted: str | None) -> Any:
        kind = self._kind(name)
        if wanted is not None and kind != wanted:
            raise DataError(f"{self.origin}: {name} is a {kind}, and not a {wanted}")
        return getattr(self._features[name], kind).value
