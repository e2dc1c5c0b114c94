"""Find the packets of a video stream that a decoder needs for a few sampled frames.

Two kinds of packets need not be decoded: pictures that no other picture is predicted from (H.264's and HEVC's
non-reference pictures, a third of a typical H.264 stream), and everything from the last wanted picture to the next
random access picture (an IDR picture or its equivalent). Both are read from the packets' headers, never from the
container's flags. The headers also give the decoder's output order, so that the index of a shown frame is known without
decoding.

If in doubt, everything is decoded: a stream with a feature that the rules are not proven for (`UnprovenError`), or
whose timestamps contradict its own order, has no plan. Excluded after trials: VP9's and AV1's unreferenced frames (they
pass probabilities on to the next frame), VP8 (its segment map outlives key frames), MPEG-4's B frames (often packed in
pairs or without timestamps) and MPEG transport streams (a packet that was cut short can't be recognised).
"""

from __future__ import annotations

from array import array
from bisect import bisect_right, insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from av.packet import Packet
from av.video.stream import VideoStream

CONTAINERS = {"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm"}  # containers that show when a packet was cut short
HEADER_BYTES = 48  # upper bound of what is read of a slice's header
LONGEST_REORDER = 16  # pictures; the maximum in H.264 and HEVC


class UnprovenError(Exception):
    """The stream has a feature that the rules are not proven for."""


class Picture(NamedTuple):
    """The content of one packet, from its headers.

    Attributes:
        shown: whether the decoder outputs a picture for it.
        fresh: whether this picture and all after it, in decoding order, need no picture before it.
        reference: whether other pictures may be predicted from it.
        order: its position in output order, among the pictures from one fresh one to the next; pictures with the same
            position are shown in decoding order.
    """

    shown: bool
    fresh: bool
    reference: bool
    order: int


@dataclass(frozen=True)
class PacketPlan:
    """The packets to decode, and the frames that they give.

    Attributes:
        decoded: (packets,) bool, in decoding order.
        expected: timestamps of all frames that the decoder then outputs, in output order.
        wanted: timestamps of the sampled frames, in the order of the chosen indices.
    """

    decoded: np.ndarray
    expected: list[int]
    wanted: list[int]


class PacketIndex:
    """Headers and timestamps of a video stream's packets, in decoding order; about 20 bytes per packet."""

    def __init__(self, video: VideoStream) -> None:
        self.listed = 0  # packets that are shown according to the container
        self._timestamps = array("q")
        self._orders = array("q")
        self._flags = array("B")  # bits: visible, fresh, reference
        self._reader: _Reader | None = None
        try:
            if video.container.format.name in CONTAINERS:
                self._reader = _reader(video)
        except UnprovenError:
            pass

    def add(self, packet: Packet) -> None:
        """Record the next packet."""
        visible = packet.pts is not None and not packet.is_discard
        self.listed += visible
        if self._reader is None:
            return
        try:
            if packet.pts is None or packet.is_corrupt:
                raise UnprovenError
            picture = self._reader.read(memoryview(packet))
            if not (self._flags or picture.fresh):
                raise UnprovenError
        except UnprovenError:
            self._discard()
            return
        self._timestamps.append(packet.pts)
        self._orders.append(picture.order)
        self._flags.append((visible and picture.shown) | picture.fresh << 1 | picture.reference << 2)

    def plan(self, choose: Callable[[int], list[int]]) -> PacketPlan | None:
        """Plan the decoding of the shown frames `choose(number of shown frames)`; None if the plan isn't certain."""
        flags = np.array(self._flags)
        visible, fresh, reference = ((flags >> bit & 1).astype(bool) for bit in range(3))
        if not visible.any():
            return None
        timestamps, group = np.array(self._timestamps), np.cumsum(fresh) - 1  # (packets,)
        shown = np.lexsort((np.array(self._orders), group))  # stable
        shown = shown[visible[shown]]  # packet numbers in output order
        if (np.diff(timestamps[shown]) <= 0).any():
            return None
        wanted = shown[choose(len(shown))]
        last_of_group = np.full(group[-1] + 1, -1)
        np.maximum.at(last_of_group, group[wanted], wanted)
        is_wanted = np.zeros(len(flags), bool)
        is_wanted[wanted] = True
        decoded = (reference | is_wanted) & (np.arange(len(flags)) <= last_of_group[group])
        expected = timestamps[shown[decoded[shown]]]
        return PacketPlan(decoded, expected.tolist(), timestamps[wanted].tolist())

    def _discard(self) -> None:
        self._reader = None
        self._timestamps, self._orders, self._flags = array("q"), array("q"), array("B")


class _Reader(Protocol):
    def read(self, packet: memoryview) -> Picture: ...


def _reader(video: VideoStream) -> _Reader:
    codec, extradata = video.codec_context.name, video.codec_context.extradata or b""
    if codec == "h264":
        return _H264(extradata)
    if codec == "hevc":
        return _Hevc(extradata)
    if codec == "vp9":
        return _Vp9()
    if codec == "libdav1d":
        return _Av1()
    raise UnprovenError


class _H264:
    """ITU-T H.264; section numbers are of its edition of 2021-08."""

    def __init__(self, extradata: bytes) -> None:
        if len(extradata) < 7 or extradata[0] != 1:  # ISO/IEC 14496-15, 5.3.3.1
            raise UnprovenError
        self._length_bytes = (extradata[4] & 3) + 1
        sets, end = _counted_units(extradata, 6, extradata[5] & 31)
        if len(sets) != 1 or end >= len(extradata):
            raise UnprovenError
        self._parameters = _H264Parameters.read(sets[0])
        self._known_sets = {*sets, *_counted_units(extradata, end + 1, extradata[end])[0]}
        self._previous_number = 0  # frame_num of the previous reference picture
        self._previous_order = 0  # PicOrderCnt of the previous reference picture
        self._reordering = _ReorderCheck(self._parameters.most_reordered)

    def read(self, packet: memoryview) -> Picture:
        head = b""
        kinds = set()
        for unit in _units(packet, self._length_bytes):
            kind = unit[0] & 31  # table 7-1
            if kind in (1, 5) and len(unit) > 2:
                kinds.add((kind == 5, unit[0] >> 5 != 0))
                if unit[1] & 0x80:  # first_mb_in_slice is 0
                    if head:
                        raise UnprovenError
                    head = bytes(unit[:HEADER_BYTES])
            elif kind in (7, 8):
                if bytes(unit) not in self._known_sets:
                    raise UnprovenError
            elif kind not in (6, 9, 10, 11, 12):  # extra information, delimiter, ends (an IDR follows), filler
                raise UnprovenError
        if len(kinds) != 1 or not head:
            raise UnprovenError
        fresh, reference = kinds.pop()
        order = self._order(_Bits(head[1:]), fresh, reference)
        self._reordering.check(order, fresh)
        return Picture(True, fresh, reference, order)

    def _order(self, bits: _Bits, fresh: bool, reference: bool) -> int:
        """Return PicOrderCnt (8.2.1) from a slice header (7.3.3); frame numbers must have no gaps (7.4.3)."""
        parameters = self._parameters
        bits.skip_ue(3)  # first_mb_in_slice, slice_type, pic_parameter_set_id
        number = bits.u(parameters.number_bits)
        modulus = 1 << parameters.number_bits
        if number != (0 if fresh else (self._previous_number + 1) % modulus):
            raise UnprovenError
        if fresh:
            bits.skip_ue(1)  # idr_pic_id
        if parameters.order_bits:
            order = _unwrap(bits.u(parameters.order_bits), parameters.order_bits, 0 if fresh else self._previous_order)
        else:  # type 2: decoding order
            order = 0
        if reference:
            self._previous_number, self._previous_order = number, order
        return order


class _H264Parameters(NamedTuple):
    """The needed fields of a sequence parameter set (7.3.2.1.1, E.1.1)."""

    number_bits: int  # of frame_num
    order_bits: int  # of pic_order_cnt_lsb; 0 if output order is decoding order
    most_reordered: int  # pictures that may precede one in decoding order and follow it in output order

    @classmethod
    def read(cls, unit: bytes) -> _H264Parameters:
        bits = _Bits(unit[1:])
        profile = bits.u(8)
        bits.u(16)  # constraints, level
        bits.skip_ue(1)
        if profile in (100, 110, 122, 244):
            if bits.ue() == 3 and bits.u(1):  # separate_colour_plane_flag
                raise UnprovenError
            bits.skip_ue(2)
            bits.u(1)
            if bits.u(1):  # scaling matrices
                raise UnprovenError
        elif profile not in (66, 77, 88):
            raise UnprovenError
        number_bits = bits.ue() + 4
        order_type = bits.ue()
        order_bits = bits.ue() + 4 if order_type == 0 else 0
        if order_type == 1:
            raise UnprovenError
        bits.skip_ue(1)
        gaps = bits.u(1)
        bits.skip_ue(2)
        if gaps or not bits.u(1):  # frame_mbs_only_flag
            raise UnprovenError
        bits.u(1)
        if bits.u(1):  # cropping
            bits.skip_ue(4)
        most_reordered = cls._read_reordering(bits) if bits.u(1) else 0
        return cls(number_bits, order_bits, most_reordered)

    @staticmethod
    def _read_reordering(bits: _Bits) -> int:
        """Return max_num_reorder_frames; 0 if absent: FFmpeg then finds it by losing frames."""
        if bits.u(1) and bits.u(8) == 255:  # aspect ratio
            bits.u(32)
        if bits.u(1):  # overscan
            bits.u(1)
        if bits.u(1):  # video signal
            bits.u(4)
            if bits.u(1):
                bits.u(24)
        if bits.u(1):  # position of the colour samples
            bits.skip_ue(2)
        if bits.u(1):  # timing
            bits.u(65)
        buffered = False
        for _ in range(2):
            if bits.u(1):
                _skip_buffering(bits)
                buffered = True
        bits.u(1 + buffered)
        if not bits.u(1):  # bitstream_restriction_flag
            return 0
        bits.u(1)
        bits.skip_ue(4)
        return bits.ue()


def _skip_buffering(bits: _Bits) -> None:
    """Skip hrd_parameters of H.264 (E.1.2)."""
    count = bits.ue() + 1
    bits.u(8)
    for _ in range(count):
        bits.skip_ue(2)
        bits.u(1)
    bits.u(20)


class _Hevc:
    """ITU-T H.265; section numbers are of its edition of 2021-08. Single layer, single temporal sub-layer."""

    def __init__(self, extradata: bytes) -> None:
        if len(extradata) < 24 or extradata[0] != 1:  # ISO/IEC 14496-15, 8.3.3.1
            raise UnprovenError
        self._length_bytes = (extradata[21] & 3) + 1
        self._known_sets: set[bytes] = set()
        position = 23
        for _ in range(extradata[22]):
            units, position = _counted_units(
                extradata, position + 3, int.from_bytes(extradata[position + 1 : position + 3])
            )
            self._known_sets.update(units)
        kinds = sorted(unit[0] >> 1 for unit in self._known_sets if unit[0] >> 1 in (33, 34))
        if kinds != [33, 34]:  # one sequence and one picture parameter set
            raise UnprovenError
        for unit in self._known_sets:
            if unit[0] >> 1 == 33:
                self._read_sequence(_Bits(unit[2:]))
            elif unit[0] >> 1 == 34:
                self._read_picture(_Bits(unit[2:]))
        self._previous_order: int | None = None  # PicOrderCntVal of the previous reference picture
        self._started_by_idr = False
        self._reordering = _ReorderCheck(self._most_reordered)

    def _read_sequence(self, bits: _Bits) -> None:
        """Read the needed fields of a sequence parameter set (7.3.2.2)."""
        bits.u(4)
        if bits.u(3):  # more temporal sub-layers: non-reference pictures of a lower one are references of a higher
            raise UnprovenError
        bits.u(1 + 96)  # profile_tier_level
        bits.skip_ue(1)
        self._planes_apart = bits.ue() == 3 and bits.u(1) == 1
        bits.skip_ue(2)
        if bits.u(1):
            bits.skip_ue(4)
        bits.skip_ue(2)
        self._order_bits = bits.ue() + 4
        bits.u(1)
        bits.skip_ue(1)
        self._most_reordered = bits.ue()

    def _read_picture(self, bits: _Bits) -> None:
        """Read the needed fields of a picture parameter set (7.3.2.3)."""
        bits.skip_ue(2)
        bits.u(1)
        if bits.u(1):  # output_flag_present_flag: some pictures may not be shown
            raise UnprovenError
        self._extra_bits = bits.u(3)

    def read(self, packet: memoryview) -> Picture:
        head = b""
        kinds = set()
        for unit in _units(packet, self._length_bytes):
            kind = unit[0] >> 1  # table 7-1
            if len(unit) < 3 or unit[0] & 1 or unit[1] != 1:  # another layer or sub-layer
                raise UnprovenError
            if kind <= 9 or kind in (19, 20, 21):
                kinds.add(kind)
                if unit[2] & 0x80:  # first_slice_segment_in_pic_flag
                    if head:
                        raise UnprovenError
                    head = bytes(unit[:HEADER_BYTES])
            elif kind in (32, 33, 34):
                if bytes(unit) not in self._known_sets:
                    raise UnprovenError
            elif kind not in (35, 38, 39, 40, 62):  # delimiter, filler, extra information, Dolby's
                raise UnprovenError
        if len(kinds) != 1 or not head:
            raise UnprovenError
        kind = kinds.pop()
        first = self._previous_order is None
        fresh = kind in (19, 20) or (first and kind == 21)
        self._started_by_idr |= first and kind in (19, 20)
        if kind in (8, 9) and not self._started_by_idr:  # a decoder drops the leading pictures of a first CRA picture
            raise UnprovenError
        reference = kind > 9 or kind % 2 == 1
        order = self._order(_Bits(head[2:]), kind)
        self._reordering.check(order, fresh)
        if reference and kind not in (7, 9):  # RADL_R and RASL_R are not used as previous pictures (8.3.1)
            self._previous_order = order
        return Picture(True, fresh, reference, order)

    def _order(self, bits: _Bits, kind: int) -> int:
        """Return PicOrderCntVal (8.3.1) from a slice segment header (7.3.6.1)."""
        bits.u(1)
        if kind >= 16 and bits.u(1):  # no_output_of_prior_pics_flag: frames of the previous group would be lost
            raise UnprovenError
        bits.skip_ue(1)
        bits.u(self._extra_bits)
        bits.skip_ue(1)
        if self._planes_apart:
            bits.u(2)
        if kind in (19, 20):
            return 0
        return _unwrap(bits.u(self._order_bits), self._order_bits, self._previous_order or 0)


class _Vp9:
    """VP9 bitstream specification 0.6, 6.2 and annex B. Key frames replace all references and probabilities."""

    def read(self, packet: memoryview) -> Picture:
        headers = [self._header(frame) for frame in self._frames(packet)]  # (shown, key) of each
        shown = sum(shown for shown, _ in headers)
        if shown > 1:
            raise UnprovenError
        return Picture(shown == 1, headers[0][1], True, 0)

    @staticmethod
    def _frames(packet: memoryview) -> list[memoryview]:
        """Split a packet: it holds one frame, or several with an index of their sizes at its end."""
        if not packet:
            raise UnprovenError
        marker = packet[-1]
        count, size_bytes = (marker & 7) + 1, (marker >> 3 & 3) + 1
        index_bytes = 2 + count * size_bytes
        if marker & 0xE0 != 0xC0 or len(packet) < index_bytes or packet[-index_bytes] != marker:
            return [packet]
        index = packet[1 - index_bytes : -1]
        sizes = [int.from_bytes(index[i : i + size_bytes], "little") for i in range(0, len(index), size_bytes)]
        ends = np.cumsum(sizes).tolist()
        if ends[-1] > len(packet) - index_bytes:
            raise UnprovenError
        return [packet[end - size : end] for end, size in zip(ends, sizes, strict=True)]

    @staticmethod
    def _header(frame: memoryview) -> tuple[bool, bool]:
        bits = _Bits(bytes(frame[:4]))
        if bits.u(2) != 2:
            raise UnprovenError
        if bits.u(2) == 3:  # profile
            bits.u(1)
        if bits.u(1):  # show_existing_frame
            return True, False
        key = bits.u(1) == 0
        return bits.u(1) == 1, key


class _Av1:
    """AV1 bitstream specification, 5.3 to 5.9. A key frame that is shown replaces all references and probabilities."""

    def __init__(self) -> None:
        self._sequence = b""

    def read(self, packet: memoryview) -> Picture:
        headers = []  # (shown, key) of each frame
        for kind, content in self._units(packet):
            if kind == 1:
                self._check_sequence(bytes(content))
            elif kind in (3, 6):  # frame header, frame
                headers.append(self._header(_Bits(bytes(content[:4]))))
            elif kind not in (2, 4, 5, 15):  # delimiter, tiles, metadata, padding
                raise UnprovenError
        shown = sum(shown for shown, _ in headers)
        if not headers or shown > 1 or not self._sequence:
            raise UnprovenError
        return Picture(shown == 1, headers[0] == (True, True), True, 0)

    @staticmethod
    def _units(packet: memoryview) -> Iterator[tuple[int, memoryview]]:
        position = 0
        while position < len(packet):
            header = packet[position]
            if header & 0x84 or not header & 2:  # another layer; a unit without its size
                raise UnprovenError
            position += 1
            size = shift = 0
            while True:  # leb128 (4.10.5)
                if position >= len(packet) or shift > 28:
                    raise UnprovenError
                byte = packet[position]
                size |= (byte & 0x7F) << shift
                position, shift = position + 1, shift + 7
                if not byte & 0x80:
                    break
            if position + size > len(packet):
                raise UnprovenError
            yield header >> 3 & 15, packet[position : position + size]
            position += size

    def _check_sequence(self, content: bytes) -> None:
        bits = _Bits(content)
        bits.u(4)
        if bits.u(1) or self._sequence not in (
            b"",
            content,
        ):  # reduced_still_picture_header; a change within the stream
            raise UnprovenError
        self._sequence = content

    @staticmethod
    def _header(bits: _Bits) -> tuple[bool, bool]:
        if bits.u(1):  # show_existing_frame
            return True, False
        key = bits.u(2) == 0
        return bits.u(1) == 1, key


class _ReorderCheck:
    """Checks that no picture comes so late, in decoding order, that a decoder would lose it."""

    def __init__(self, most_reordered: int) -> None:
        self._most_reordered = min(most_reordered, LONGEST_REORDER)
        self._highest: list[int] = []  # the highest orders so far, ascending

    def check(self, order: int, fresh: bool) -> None:
        if fresh:
            self._highest = []
        if len(self._highest) - bisect_right(self._highest, order) > self._most_reordered:
            raise UnprovenError
        insort(self._highest, order)
        del self._highest[: -LONGEST_REORDER - 1]


class _Bits:
    """Reads bits from the left; raises `UnprovenError` at the end."""

    def __init__(self, content: bytes) -> None:
        unescaped = content.replace(
            b"\0\0\3", b"\0\0"
        )  # H.264 and HEVC; too rare in other codecs to matter in four bytes
        self._value = int.from_bytes(unescaped)
        self._left = 8 * len(unescaped)

    def u(self, bits: int) -> int:
        """Read an unsigned number of this many bits."""
        self._left -= bits
        if self._left < 0:
            raise UnprovenError
        return self._value >> self._left & ((1 << bits) - 1)

    def ue(self) -> int:
        """Read an unsigned Exp-Golomb number (H.264, 9.1)."""
        zeros = 0
        while not self.u(1):
            zeros += 1
        return (1 << zeros) - 1 + self.u(zeros)

    def skip_ue(self, count: int) -> None:
        for _ in range(count):
            self.ue()


def _units(packet: memoryview, length_bytes: int) -> Iterator[memoryview]:
    """Yield the NAL units of a packet; each follows its length and has at least one byte."""
    position = 0
    while position < len(packet):
        begin = position + length_bytes
        position = begin + int.from_bytes(packet[position:begin])
        if not begin < position <= len(packet):
            raise UnprovenError
        yield packet[begin:position]


def _counted_units(content: bytes, position: int, count: int) -> tuple[list[bytes], int]:
    """Return `count` units, each after its length of 2 bytes, and the position after them."""
    units = []
    for _ in range(count):
        begin = position + 2
        position = begin + int.from_bytes(content[position:begin])
        if not begin + 1 < position <= len(content):
            raise UnprovenError
        units.append(content[begin:position])
    return units, position


def _unwrap(low: int, bits: int, previous: int) -> int:
    """Return the number nearest to the previous one whose last bits are `low`."""
    modulus = 1 << bits
    number = previous - previous % modulus + low
    if number - previous > modulus // 2:
        return number - modulus
    if previous - number >= modulus // 2:  # as in the standards, a step of exactly half goes up
        return number + modulus
    return number
