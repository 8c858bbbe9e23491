"""The bytes of a TensorBoard event file that holds scalars.

A file is a sequence of TFRecords: the length of a message (uint64), its checksum, the message, its checksum, all
little-endian. A message is a serialized `Event` of TensorBoard's `event.proto`. The few fields that scalars need are
written by hand, so that a stage that logs needs neither TensorFlow nor torch nor a version of protobuf.
"""

import ctypes
import struct
from collections.abc import Mapping

VERSION = b"brain.Event:2"


def start(wall_time: float) -> bytes:
    """Return the record that a file begins with: the version of its format."""
    return _record(_wall_time(wall_time) + _field(3, VERSION))


def scalars(wall_time: float, step: int, values: Mapping[str, float]) -> bytes:
    """Return the record of one step's numbers, names as tags."""
    summary = b"".join(_field(1, _field(1, name.encode()) + _float32(value)) for name, value in values.items())
    return _record(_wall_time(wall_time) + b"\x10" + _varint(step) + _field(5, summary))


def _record(message: bytes) -> bytes:
    length = struct.pack("<Q", len(message))
    return length + _checksum(length) + message + _checksum(message)


def _wall_time(seconds: float) -> bytes:
    """Field 1 of an `Event`, a double."""
    return b"\x09" + struct.pack("<d", seconds)


def _float32(value: float) -> bytes:
    """Field 2 of a summary's value, a float; a number beyond its range becomes infinite."""
    return b"\x15" + struct.pack("<f", ctypes.c_float(value).value)


def _field(number: int, content: bytes) -> bytes:
    """Return a protobuf field of bytes: number and type, length, content."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """Return a whole number in groups of seven bits, the lowest first; the high bit of a byte says that more follow."""
    groups = bytearray()
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def _remainder(byte: int) -> int:
    """CRC-32C (Castagnoli) of one byte, without the inversions."""
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


REMAINDERS = [_remainder(byte) for byte in range(256)]


def _checksum(content: bytes) -> bytes:
    """CRC-32C, rotated and shifted as TFRecords want it."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = crc >> 8 ^ REMAINDERS[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
