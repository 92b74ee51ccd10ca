"""A reader of the journal, written from journal/FORMAT.md alone; "section" and "step" are that page's.

    python3 reader.py DIR

prints one JSON object, an account with the keys of `restante verify --json`: exit 0, also if the journal is damaged. Exit 1
with a message where the format says that a reader must stop. Never writes, nor locks. Python 3.11, its own library alone.
"""

import io
import ipaddress
import json
import os
import re
import sys
from itertools import chain, pairwise
from types import SimpleNamespace as Record

PAGE, COPY, SECTOR, PIECE, META_MAX, TOO_LARGE = 4096, 2048, 512, 256 << 10, 16 << 20, 1 << 60
ACCEPTED, ATTEMPTED, OPERATED, SERVED, SUCCESSION, MARK, SEAL = 1, 2, 3, 4, 5, 16, 17
MAY_SKIP, IN_BLOB = 1, 2  # flags
PENDING, SENT, DEFERRED, QUARANTINED = 0, 1, 2, 4  # outcomes; 0 stands for all that are not final
CRC_TABLE = list(range(256))
for _ in range(8):
    CRC_TABLE = [crc >> 1 ^ (0x82F63B78 if crc & 1 else 0) for crc in CRC_TABLE]


class Refused(Exception):
    """This reader must not read this journal."""


class Wrong(Exception):
    """A meta that does not decode."""


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def checked(data, length, crc):
    return data if len(data) == length and crc32c(data) == crc else None


def round_up(offset, multiple):
    return -(-offset // multiple) * multiple


def ulid(bits):
    return "".join("0123456789ABCDEFGHJKMNPQRSTVWXYZ"[bits >> shift & 31] for shift in range(125, -1, -5))


def read(*path):
    """All of a file. A sector that the disk does not give back becomes bytes that no checksum fits."""

    def sector(at):
        try:
            return os.pread(file.fileno(), SECTOR, at)
        except OSError:
            return b"\xee" * min(SECTOR, size - at)

    with open(os.path.join(*path), "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            return file.read()
        except OSError:
            return b"".join(map(sector, range(0, size, SECTOR)))


# Fields: functions that take one from a stream of bytes, and functions that make such functions.


def exactly(length, stream):
    data = stream.read(length)
    if len(data) < length:
        raise Wrong
    return data


def number(size, *known):
    def take(stream):
        value = int.from_bytes(exactly(size, stream), "little")
        if known and value not in known:
            raise Wrong
        return value

    return take


U8, U16, U32, U64, U128 = map(number, (1, 2, 4, 8, 16))


def raw(length):
    return lambda stream: exactly(length, stream)


def many(count, item):
    return lambda stream: [item(stream) for _ in range(count(stream))]


def record(**fields):
    return lambda stream: Record(**{name: take(stream) for name, take in fields.items()})


def optional(item):
    return lambda stream: item(stream) if number(1, 0, 1)(stream) else None


def text(stream):
    try:
        return exactly(U16(stream), stream).decode()
    except UnicodeDecodeError:
        raise Wrong from None


def addr(stream):
    return ipaddress.ip_address(exactly(4 if number(1, 4, 6)(stream) == 4 else 16, stream))


ATEXT = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
LOCAL_PART = re.compile(rf'\.*{ATEXT}({ATEXT}|\.)*|"([ !#-[\]-~]|\\[ -~])*"')
DOMAIN = re.compile(r"(?!-)[\w-]{1,63}(?<!-)(\.(?!-)[\w-]{1,63}(?<!-))*", re.ASCII)
LITERAL = re.compile(r"\[(IPv6:)?([0-9A-F:.]+)\]", re.IGNORECASE)


def path(also):
    def take(stream):
        path = text(stream)
        local, _, domain = path.rpartition("@")
        literal = LITERAL.fullmatch(domain)
        try:
            domain_right = ip_of(literal) if literal else DOMAIN.fullmatch(domain)
        except ValueError:
            raise Wrong from None
        mailbox = domain_right and LOCAL_PART.fullmatch(local) and path.isascii() and len(local) <= 64 and len(path) <= 254
        if path.lower() != also and not mailbox:
            raise Wrong
        return path

    return take


def ip_of(literal):
    return ipaddress.IPv6Address(literal[2]) if literal[1] else ipaddress.IPv4Address(literal[2])


def result(stream):
    recipient, outcome = U16(stream), number(1, SENT, DEFERRED, 3, QUARANTINED)(stream)
    next_try = U64(stream) if outcome == DEFERRED else None
    cause = number(1, *([0] if outcome == SENT else [0, 1, 2, 3]))(stream)
    reply = record(code=U16, enhanced=record(class_=U8, subject=U16, detail=U16))(stream) if cause == 0 else None
    return Record(recipient=recipient, outcome=outcome, next_try=next_try, cause=cause, reply=reply, text=text(stream))


# Section 4.
METAS = {
    ACCEPTED: record(
        time=U64, body=number(1, 0, 1), protocol=number(1, 0, 1, 2), client=addr, client_port=U16, session=U64, helo=text,
        reverse_path=path(""), tls=text, hold=text, routes=many(U16, text),
        recipients=many(U16, record(route=U16, forward_path=path("postmaster"))),
    ),
    ATTEMPTED: record(
        time=U64, before_queue_ms=U32, in_queue_ms=U64, connecting_ms=U32, transferring_ms=U32,
        host=optional(record(name=text, addr=addr, port=U16, tls=text)), results=many(U16, result),
    ),
    OPERATED: record(time=U64, action=number(1, 1, 2), actor=text, reason=text, recipients=many(U16, U16)),
    SERVED: record(
        time=U64, hostname=text,
        routes=many(U16, record(name=text, domains=many(U16, text), next_hops=many(U16, text))),
    ),
    SUCCESSION: record(number=U64, length=U64, torn=many(U32, record(offset=U64, length=U64))),
    MARK: record(
        batch=U64, messages=U64, recipients=U64,
        named=many(U32, record(id=U128, at=U64, crc=U32, recipients=U16, kind=U8, zero=U8)),
    ),
    SEAL: record(frames=U64, messages=U64, recipients=U64),
}
# Section 2.
HEADER = record(
    magic=raw(8), format=U16, oldest_reader=U16, tag=U32, journal=raw(16), number=U64, first_sequence=U64, created=U64,
    previous=U64, previous_length=U64, messages=U64, recipients=U64, made=U32, crc=U32,
)
HEADER_SIZE = 96
# Section 3.
FRAME = record(
    magic=raw(4), crc=U32, kind=U8, flags=U8, recipients=U16, tag=U32, sequence=U64, offset=U64, id=U128,
    meta_length=U32, meta_crc=U32, content_length=U32, content_crc=U32,
)
FRAME_SIZE = 64


class Segment:
    def __init__(self, directory, number):
        self.number, self.name = number, f"seg-{number:020}.rj"
        self.data = read(directory, self.name)
        page = self.data[:PAGE]
        copies = [page[at : at + HEADER_SIZE] for at in (0, COPY)]
        good = next((c for c in copies if c[:8] == b"RSTJRNL\1" and crc32c(c[:-4]) == int.from_bytes(c[-4:], "little")), None)
        self.header = HEADER(io.BytesIO(good)) if good else None
        if self.header and self.header.oldest_reader > 1:
            raise Refused(f"{self.name} needs a reader of format {self.header.oldest_reader}; this one knows 1")
        self.page_right = bool(good) and page == good.ljust(COPY, b"\0") * 2 and self.header.number == number
        self.tag = self.header.tag if good else next((f.tag for f in self.headers(PAGE, len(self.data))), None)

    def headers(self, at, end):
        """The frame headers in front of `end` that are right, apart from tag and sequence."""
        while (at := self.data.find(b"RJF1", at, end + 3)) >= 0:
            if at % 8 == 0 and len(self.data) >= at + FRAME_SIZE:
                frame = FRAME(io.BytesIO(self.data[at : at + FRAME_SIZE]))
                if frame.crc == crc32c(self.data[at + 8 : at + FRAME_SIZE]) and frame.offset == at and frame.meta_length <= META_MAX:
                    yield frame
            at += 1

    def next_frame(self, at, end, sequence):
        return next((f for f in self.headers(at, end) if f.tag == self.tag and sequence < f.sequence < TOO_LARGE), None)

    def opened(self, frame):
        """With what stands behind the header; a meta or content that is wrong is None."""
        if frame.kind not in METAS and not frame.flags & MAY_SKIP:
            raise Refused(f"{self.name} has a frame of kind {frame.kind} at {frame.offset}, unknown and not to be skipped")
        if frame.kind in METAS and frame.flags & ~(MAY_SKIP | (IN_BLOB if frame.kind == ACCEPTED else 0)):
            raise Refused(f"{self.name} has a frame with flags {frame.flags:#x} at {frame.offset}, which are unknown")
        frame.meta_at = frame.offset + FRAME_SIZE
        frame.content_at = frame.meta_at + frame.meta_length
        frame.padding_at = frame.content_at + frame.content_length
        frame.end = round_up(frame.padding_at, 8)
        frame.padding_wrong = any(self.data[frame.padding_at : frame.end])
        frame.content = checked(self.data[frame.content_at : frame.padding_at], frame.content_length, frame.content_crc)
        meta = checked(self.data[frame.meta_at : frame.content_at], frame.meta_length, frame.meta_crc)
        try:
            frame.meta = None if meta is None else decoded(frame, meta)
        except Wrong:
            frame.meta = None
        return frame

    def told_of(self, number):
        """Step 4: how many bytes of the segment in front count, if this one tells, and what was torn in it."""
        first = self.next_frame(PAGE, PAGE + 1, 0)
        succession = first and meta_of(self.opened(first), SUCCESSION)
        if succession and succession.number != number:
            succession = None
        by_header = self.header.previous_length if self.header and self.header.previous == number else None
        return by_header if by_header is not None or not succession else succession.length, succession.torn if succession else []


def decoded(frame, meta):
    if frame.kind not in METAS:
        return Record()
    blob = None
    if frame.flags & IN_BLOB and frame.kind == ACCEPTED:
        blob = record(name=raw(16), length=U64)(io.BytesIO(meta[-24:]))
        meta = meta[:-24]
        if frame.content_length != 4 * -(-blob.length // PIECE):
            raise Wrong
    fields = METAS[frame.kind](io.BytesIO(meta))
    if frame.kind == ACCEPTED:
        fields.blob = blob
        if any(recipient.route >= len(fields.routes) for recipient in fields.recipients):
            raise Wrong
    return fields


def meta_of(frame, *kinds):
    return frame.meta if frame.kind in kinds else None


class Account:
    def __init__(self, directory):
        self.directory, self.journal, self.number, self.sequence = directory, None, 0, 0
        self.total, self.unnamed, self.states, self.messages, self.settled = (0, 0), (0, 0), {}, 0, 0
        self.segments, self.bytes, self.blobs, self.damage, self.torn = 0, 0, [], [], []

    def place(self, proven, segment, at, length, kind, ids=(), file=None):
        ids = [ulid(bits) for bits in ids if bits]
        place = {"segment": segment, "offset": at, "bytes": length, "kind": kind, "ids": ids, "file": file}
        (self.damage if proven else self.torn).append(place)

    def count(self, messages, recipients):
        self.total = self.total[0] + messages, self.total[1] + recipients

    def message(self, ident, recipients, state):
        if ident not in self.states:
            self.states[ident], self.messages = [state] * recipients, self.messages + 1

    def compare(self, segment, counts, torn=(0, 0)):
        """Step 3, and what step 9 says of marks and seals."""
        missing = [max(0, told - known - torn) for told, known, torn in zip(counts, self.total, torn)]
        if max(counts) < TOO_LARGE and any(missing):
            self.place(True, segment.name, 0, 0, "unnamed")
            self.count(*missing)
            self.unnamed = self.unnamed[0] + missing[0], self.unnamed[1] + missing[1]

    def add(self, segment, following):
        name, size, header = segment.name, len(segment.data), segment.header
        if segment.number > self.number + 1:
            self.place(True, f"seg-{self.number + 1:020}.rj", 0, 0, "missing-segment")
        self.number, self.segments, self.bytes = segment.number, self.segments + 1, self.bytes + size
        if not segment.page_right:
            self.place(True, name, 0, PAGE, "header-page")
        if header:
            if self.journal not in (None, header.journal):
                raise Refused(f"{name} belongs to another journal than the segments in front of it")
            self.journal, counts = header.journal, (header.messages, header.recipients)
            self.compare(segment, counts)
            if segment.page_right and max(counts) < TOO_LARGE:
                self.total = counts
        told, torn = following.told_of(segment.number) if following else (None, [])
        limit = size if told is None else told
        frames, holes = self.scan(segment, limit, told is not None, torn)

        # Step 6.
        marks = [frame for frame in frames if meta_of(frame, MARK)]
        batches = [min(mark.meta.batch, mark.offset) for mark in marks]
        for batch in batches:
            holes = [part for hole in holes for part in split(hole, batch)]
        there = {frame.offset for frame in frames}
        named = [n for mark in marks for n in mark.meta.named if mark.meta.batch <= n.at < mark.offset and n.at not in there]
        forgiven = [n for n in named if n.kind == ACCEPTED and any(within(n.at, t) for t in torn)]

        # Step 7, and the definition of "proven" above it.
        seals = [frame for frame in frames if meta_of(frame, SEAL)]
        proven = max(batches, default=0)
        sealed = len(seals) > 1
        if len(seals) == 1:
            proven = max(proven, seals[0].end)
            second = Record(offset=round_up(seals[0].end, PAGE), length=seals[0].end - seals[0].offset)
            sealed = limit == second.offset + second.length
            if sealed and not any(within(second.offset, hole) for hole in holes):
                holes.append(second)
            sealed = sealed or not any(hole.offset >= seals[0].end for hole in holes)
        if sealed or following:
            proven = max(limit, size)
        if header and not seals and size < header.made and (told is None or told <= size):
            self.place(True, name, size, header.made - size, "frame")  # step 8

        for item in sorted(frames + holes, key=lambda item: item.offset):  # step 9
            safe = item.offset < proven
            if item in holes:
                self.hole(segment, item, [n for n in named if within(n.at, item)], safe)
            else:
                self.frame(segment, item, safe)
                if safe and (counts := meta_of(item, MARK, SEAL)):
                    passed = [n.recipients for n in forgiven if n.at < item.offset]
                    self.compare(segment, (counts.messages, counts.recipients), (len(passed), sum(passed)))

    def scan(self, segment, limit, given, torn):
        """Step 5."""
        frames, holes, at, end = [], [], PAGE, min(limit, len(segment.data))
        while at < end:
            if ranges := [t for t in torn if within(at, t)]:
                at = ranges[0].offset + ranges[0].length
                continue
            frame = segment.next_frame(at, end, self.sequence)
            if frame and frame.offset == at:
                frames.append(segment.opened(frame))
                at, self.sequence = frame.end, frame.sequence
                continue
            stop = min([end, frame.offset if frame else end] + [t.offset for t in torn if t.offset > at])
            seals = sum(meta_of(frame, SEAL) is not None for frame in frames)
            bytes_there = len(segment.data[at:stop].rstrip(b"\0"))
            if stop == end and (seals or not given) or seals == 1 and bytes_there == 0:
                length = bytes_there
            else:
                length = stop - at
            if length:
                holes.append(Record(offset=at, length=length))
            at = stop
        if len(segment.data) < limit:
            holes.append(Record(offset=len(segment.data), length=limit - len(segment.data)))
        return frames, holes

    def hole(self, segment, hole, named, proven):
        self.place(proven, segment.name, hole.offset, hole.length, "frame", [n.id for n in named])
        for message in named:
            if proven and message.kind == ACCEPTED:
                self.count(1, message.recipients)
                self.message(message.id, message.recipients, QUARANTINED)

    def frame(self, segment, frame, proven):
        name, whole = segment.name, (frame.offset, frame.end - frame.offset)
        if frame.padding_wrong:
            self.place(proven, name, frame.padding_at, frame.end - frame.padding_at, "padding")
        if not proven and (frame.meta is None or frame.content is None):
            return self.place(proven, name, *whole, "content", [frame.id])
        if frame.meta is None:
            self.place(proven, name, *whole, "envelope", [frame.id])
        elif frame.content is None:
            self.place(proven, name, frame.content_at, frame.content_length, "content", [frame.id])
        if frame.kind == ACCEPTED:
            self.count(1, frame.recipients)
            recipients = frame.recipients if frame.meta is None else len(frame.meta.recipients)
            intact = self.blob_intact(segment, frame) and frame.content is not None and frame.meta is not None
            self.message(frame.id, recipients, PENDING if intact else QUARANTINED)
        elif attempted := meta_of(frame, ATTEMPTED):
            states = self.states.get(frame.id, [])
            for result in attempted.results:
                if result.recipient < len(states) and states[result.recipient] != SENT and result.outcome in (SENT, QUARANTINED):
                    states[result.recipient] = result.outcome
            if states and all(state == SENT for state in states):
                self.settled += len(self.states.pop(frame.id))

    def blob_intact(self, segment, frame):
        if frame.meta is None or frame.meta.blob is None:
            return True
        name, length = frame.meta.blob.name.hex(), frame.meta.blob.length
        self.blobs.append((name, length))
        if frame.content is None:
            return True
        try:
            data = read(self.directory, "blob", name)
        except FileNotFoundError:
            self.place(True, segment.name, frame.offset, length, "blob-missing", [frame.id], f"blob/{name}")
            return False
        wrong = max(0, len(data) - length)
        for at, crc in zip(range(0, length, PIECE), many(lambda _: len(frame.content) // 4, U32)(io.BytesIO(frame.content))):
            piece = min(PIECE, length - at)
            wrong += 0 if checked(data[at : at + piece], piece, crc) is not None else piece
        if wrong:
            self.place(True, segment.name, frame.offset, wrong, "blob", [frame.id], f"blob/{name}")
        return not wrong

    def told(self):
        """Step 10."""
        states = [state for message in self.states.values() for state in message]
        shelf = os.path.join(self.directory, "blob")
        named = {name for name, _ in self.blobs}
        files = sorted(os.listdir(shelf)) if os.path.isdir(shelf) else []
        return {
            "state": "damaged" if self.damage else "torn" if self.torn else "clean",
            "transactions": self.messages + self.unnamed[0],
            "accepted": len(states) + self.settled + self.unnamed[1],
            "pending": states.count(PENDING),
            "sent": states.count(SENT) + self.settled,
            "quarantined": states.count(QUARANTINED) + self.unnamed[1],
            "segments": self.segments,
            "bytes": self.bytes,
            "blobs": len(self.blobs),
            "blob_bytes": sum(length for _, length in self.blobs),
            "damage": self.damage,
            "torn": self.torn,
            "orphans": [f"blob/{f}" for f in files if re.fullmatch(r"[0-9a-f]{32}(\.part)?", f) and f not in named],
        }


def within(at, place):
    return place.offset <= at < place.offset + place.length


def split(hole, at):
    if hole.offset == at or not within(at, hole):
        return [hole]
    end = hole.offset + hole.length
    return [Record(offset=hole.offset, length=at - hole.offset), Record(offset=at, length=end - at)]


def main(directory):
    names = (re.fullmatch(r"seg-([0-9]{20})\.rj", name) for name in os.listdir(directory))
    numbers = sorted(int(name[1]) for name in names if name and int(name[1]) < 1 << 64)
    account = Account(directory)
    for segment, following in pairwise(chain((Segment(directory, number) for number in numbers), [None])):
        account.add(segment, following)
    print(json.dumps(account.told()))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python3 reader.py DIR")
    try:
        main(sys.argv[1])
    except (Refused, OSError) as stop:
        sys.exit(f"reader.py: {stop}")
