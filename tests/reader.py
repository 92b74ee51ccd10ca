"""A reader of the journal that follows journal/FORMAT.md alone; "section" and "step" are that page's.

    python3 reader.py DIR

prints one JSON object, an account with keys of `restante verify --json`: exit 0, also if the journal is damaged. Exit 1,
with a message, where the format says that a reader must stop. Never writes, nor locks. Python 3.11, its own library alone.
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
ACCEPTED, ATTEMPTED, OPERATED, SERVED, SUCCESSION, CARRIED, REPLAYED, MARK, SEAL = 1, 2, 3, 4, 5, 6, 7, 16, 17
MESSAGES = ACCEPTED, CARRIED
MAY_SKIP, IN_BLOB, ASKED = 1, 2, 4  # flags
PENDING, SENT, DEFERRED, HELD, QUARANTINED, BOUNCED, EXPIRED, REMOVED = range(8)  # outcomes and states
FINAL = SENT, QUARANTINED, BOUNCED, REMOVED
BOUNCE, REMOVE, UNDO = 3, 4, 5  # actions
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
    with open(os.path.join(*path), "rb", buffering=0) as file:
        try:
            return file.read()
        except OSError:
            size = os.fstat(file.fileno()).st_size
            return b"".join(sector(file.fileno(), at)[: size - at] for at in range(0, size, SECTOR))


def sector(fd, at):
    try:
        return os.pread(fd, SECTOR, at)
    except OSError:
        return b"\xee" * SECTOR


# Sections 2 to 4: fields. A field is a function that takes it from a stream of bytes.


def raw(length):
    def take(stream):
        data = stream.read(length)
        if len(data) < length:
            raise Wrong
        return data

    return take


def number(size, *known):
    def take(stream):
        value = int.from_bytes(raw(size)(stream), "little")
        if known and value not in known:
            raise Wrong
        return value

    return take


def many(count, item):
    return lambda stream: [item(stream) for _ in range(count(stream))]


def record(**fields):
    return lambda stream: Record(**{name: take(stream) for name, take in fields.items()})


def text(stream):
    try:
        return raw(U16(stream))(stream).decode()
    except UnicodeDecodeError:
        raise Wrong from None


def addr(stream):
    return ipaddress.ip_address(raw({4: 4, 6: 16}[number(1, 4, 6)(stream)])(stream))


def path(other):
    def take(stream):
        path = text(stream)
        if path.lower() != other and not is_mailbox(path):
            raise Wrong
        return path

    return take


def hides(text):
    return HIDDEN.search(text) is not None or any(ord(c) & 0xFFFE == 0xFFFE for c in text)


def is_mailbox(path):
    local, _, domain = path.rpartition("@")
    if len(path.encode()) > 254 or len(local.encode()) > 64 or hides(path) or not LOCAL_PART.fullmatch(local):
        return False
    try:
        domain = domain if domain.isascii() else domain.encode("idna").decode()
    except UnicodeError:
        return False
    if not (literal := LITERAL.fullmatch(domain)):
        return DOMAIN.fullmatch(domain) is not None
    try:
        return ipaddress.ip_address(literal[2]).version == (6 if literal[1] else 4)
    except ValueError:
        return False


def result(stream):
    recipient, outcome = U16(stream), number(1, SENT, DEFERRED, HELD, QUARANTINED)(stream)
    next_try = U64(stream) if outcome == DEFERRED else None
    cause = number(1, 0)(stream) if outcome == SENT else number(1, 0, 1, 2, 3)(stream)
    reply = REPLY(stream) if cause == 0 else None
    return Record(recipient=recipient, outcome=outcome, next_try=next_try, cause=cause, reply=reply, text=text(stream))


def standing(stream):
    attempts, state = U16(stream), number(1, PENDING, SENT, DEFERRED, HELD, QUARANTINED, BOUNCED, REMOVED)(stream)
    return Record(attempts=attempts, state=state, next_try=U64(stream) if state == DEFERRED else None, why=text(stream))


def carried(stream):
    states = many(U16, standing)(stream)
    fields = METAS[ACCEPTED](stream)
    if len(states) != len(fields.recipients):
        raise Wrong
    fields.states = states
    return fields


def past(fields, stream):
    """4.12, of the bytes that are left, if any are."""
    replays = many(U16, record(job=U64, taken=number(1, 0, 1)))
    for told in many(U16, record(recipient=U16, sent=U64, replays=replays))(stream):
        if told.recipient >= len(fields.states) or fields.states[told.recipient].state != SENT:
            raise Wrong


def asked(fields, stream):
    fields.utf8 = number(1, 0, 1)(stream)
    number(1, 0, 1, 2)(stream)
    envid = text(stream)
    if envid and not (len(envid) <= 100 and XTEXT.fullmatch(envid)):
        raise Wrong
    for _ in fields.recipients:
        number(1, 0, 1, *range(2, 15, 2))(stream)
        original = text(stream)
        kind, _, address = original.partition(";")
        encoding = UTF8_XTEXT if kind.lower() == "utf-8" else XTEXT
        fits = len(original.encode()) <= 500 and ADDRESS_TYPE.fullmatch(kind) and encoding.fullmatch(address)
        fits = fits and not hides(original)
        if original and not (fits and all(is_shown(int(c, 16)) for c in re.findall(r"\\x\{(\w+)\}", address))):
            raise Wrong


def is_shown(code):
    return code < 0x110000 and not 0xD800 <= code < 0xE000 and re.fullmatch(f"[ -~{BEYOND}]", chr(code)) is not None and not hides(chr(code))


def optional(item):
    return lambda stream: item(stream) if number(1, 0, 1)(stream) else None


U8, U16, U32, U64, U128 = map(number, (1, 2, 4, 8, 16))
# Beyond ASCII what neither steers nor hides is for `hides`; whether it was asked for, for 4.11.
BEYOND = r"\xa0-\U0010ffff"
HIDDEN = re.compile(
    r"[\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb"
    r"\ufdd0-\ufdef\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
ATEXT = rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~{BEYOND}-]"
LOCAL_PART = re.compile(rf'\.*{ATEXT}({ATEXT}|\.)*|"([ !#-[\]-~{BEYOND}]|\\[ -~])*"')
XTEXT = re.compile(r"([!-*,-<>-~]|\+(2[0-9A-F]|[3-6][0-9A-F]|7[0-9A-E]))+")
UTF8_XTEXT = re.compile(rf"([!-*,-<>-\[\]-~{BEYOND}]|\\x\{{[0-9A-F]{{2,6}}\}})+")
ADDRESS_TYPE = re.compile(r"[A-Za-z0-9-]{1,32}")
DOMAIN = re.compile(r"(?!-)[\w-]{1,63}(?<!-)(\.(?!-)[\w-]{1,63}(?<!-))*", re.ASCII)
LITERAL = re.compile(r"\[(IPv6:)?([0-9A-F:.]+)\]", re.IGNORECASE)
REPLY = record(code=U16, enhanced=record(status=U8, subject=U16, detail=U16))
HOST = record(name=text, addr=addr, port=U16, tls=text)
HEADER_1 = dict(
    magic=raw(8), format=U16, oldest_reader=U16, tag=U32, journal=raw(16), number=U64, first_sequence=U64, created=U64,
    previous=U64, previous_length=U64, messages=U64, recipients=U64, made=U32,
)
LEFT = dict(
    first=U64, messages_before=U64, recipients_before=U64, messages_left=U64, sent=U64, bounced=U64, expired=U64,
    removed=U64, quarantined=U64, generated=U64,
)
HEADERS = {96: record(**HEADER_1), 192: record(**HEADER_1, **LEFT, largest_id=U128)}  # by the length of a copy
FRAME = record(
    magic=raw(4), crc=U32, kind=U8, flags=U8, recipients=U16, tag=U32, sequence=U64, offset=U64, id=U128,
    meta_length=U32, meta_crc=U32, content_length=U32, content_crc=U32,
)
FRAME_SIZE = 64
METAS = {
    ACCEPTED: record(
        time=U64, body=number(1, 0, 1), protocol=number(1, *range(5)), client=addr, port=U16, session=U64, helo=text,
        reverse_path=path(""), tls=text, hold=text, routes=many(U16, text),
        recipients=many(U16, record(route=U16, forward_path=path("postmaster"))),
    ),
    ATTEMPTED: record(
        time=U64, before_queue_ms=U32, in_queue_ms=U64, connecting_ms=U32, transferring_ms=U32,
        host=optional(HOST), results=many(U16, result),
    ),
    CARRIED: carried,
    OPERATED: record(time=U64, action=number(1, *range(1, 6)), actor=text, reason=text, recipients=many(U16, U16)),
    REPLAYED: record(
        time=U64, job=U64, segment=U64, offset=U64, actor=text, reason=text, host=optional(HOST),
        results=many(U16, record(recipient=U16, reply=REPLY, text=text)),
    ),
    SERVED: record(
        time=U64, hostname=text,
        routes=many(U16, record(name=text, domains=many(U16, text), next_hops=many(U16, text))),
    ),
    SUCCESSION: record(number=U64, length=U64, torn=many(U32, record(offset=U64, length=U64))),
    MARK: record(
        batch=U64, messages=U64, recipients=U64,
        named=many(U32, record(id=U128, offset=U64, crc=U32, recipients=U16, kind=U8, zero=U8)),
    ),
    SEAL: record(frames=U64, messages=U64, recipients=U64),
}


def decode(frame, meta):
    if frame.kind not in METAS:
        return Record()
    blob = None
    if frame.kind in MESSAGES and frame.flags & IN_BLOB:
        blob, meta = record(name=raw(16), length=U64)(io.BytesIO(meta[-24:])), meta[:-24]
    fields = METAS[frame.kind](stream := io.BytesIO(meta))
    if frame.kind in MESSAGES:
        fields.utf8 = 0
        if frame.flags & ASKED:
            asked(fields, stream)
        if frame.kind == CARRIED and stream.tell() < len(meta):
            past(fields, stream)
        paths = chain([fields.reverse_path], (r.forward_path for r in fields.recipients))
        if not fields.utf8 and not all(map(str.isascii, paths)):
            raise Wrong
    table_wrong = blob and frame.content_length != round_up(blob.length, PIECE) // PIECE * 4
    if table_wrong or frame.kind in MESSAGES and any(r.route >= len(fields.routes) for r in fields.recipients):
        raise Wrong
    fields.blob = blob
    return fields


def meta_of(frame, *kinds):
    return frame.meta if frame.kind in kinds else None


def hole(at, end):
    return Record(kind=None, offset=at, length=end - at)


def split(found, at):
    return [hole(found.offset, at), hole(at, found.offset + found.length)] if within(at, found) else [found]


def within(at, place):
    return place.offset <= at < place.offset + place.length


def is_good(copy, size):
    """Whether these are the bytes of a header of that size."""
    if len(copy) < size or copy[:8] != b"RSTJRNL\1" or crc32c(copy[:-4]).to_bytes(4, "little") != copy[-4:]:
        return False
    header = HEADERS[size](io.BytesIO(copy))
    if header.oldest_reader > 2 or header.format < 2:
        return header.oldest_reader > 2 or size == 96
    return size == 192 and header.first <= header.number and max(getattr(header, name) for name in LEFT) < TOO_LARGE


class Segment:
    def __init__(self, directory, number):
        self.number, self.name = number, f"seg-{number:020}.rj"
        self.data = read(directory, self.name)
        good = [copy for at in (0, COPY) for size in HEADERS if is_good(copy := self.data[at : at + size], size)]
        self.header = HEADERS[len(good[0])](io.BytesIO(good[0])) if good else None
        if good and self.header.oldest_reader > 2:
            raise Refused(f"{self.name} needs a reader of format {self.header.oldest_reader}; this one knows 2")
        self.page_right = good and self.data[:PAGE] == good[0].ljust(COPY, b"\0") * 2 and self.header.number == number
        self.tag = self.header.tag if good else next((f.tag for f in self.headers(PAGE, len(self.data))), None)

    def headers(self, at, end):
        """Frame headers that begin in front of `end` and are right, apart from tag and sequence."""
        while (at := self.data.find(b"RJF1", at, end + 3)) >= 0:
            header = self.data[at : at + FRAME_SIZE]
            if at % 8 == 0 and len(header) == FRAME_SIZE:
                frame = FRAME(io.BytesIO(header))
                if frame.crc == crc32c(header[8:]) and frame.offset == at and frame.meta_length <= META_MAX:
                    yield frame
            at += 1

    def next_frame(self, at, end, sequence):
        """The next valid frame, with `meta` and `content` None if they are wrong."""
        headers = self.headers(at, end)
        frame = next((f for f in headers if f.tag == self.tag and sequence < f.sequence < TOO_LARGE), None)
        if not frame:
            return None
        if frame.kind not in METAS and not frame.flags & MAY_SKIP:
            raise Refused(f"{self.name} has a frame of kind {frame.kind} at {frame.offset}: unknown, not to be skipped")
        if frame.kind in METAS and frame.flags & ~(MAY_SKIP | (IN_BLOB | ASKED if frame.kind in MESSAGES else 0)):
            raise Refused(f"{self.name} has a frame with flags {frame.flags:#x} at {frame.offset}, which are unknown")
        meta_at = frame.offset + FRAME_SIZE
        frame.content_at = meta_at + frame.meta_length
        frame.padding_at = frame.content_at + frame.content_length
        frame.end = round_up(frame.padding_at, 8)
        frame.padding_wrong = any(self.data[frame.padding_at : frame.end])
        frame.content = checked(self.data[frame.content_at : frame.padding_at], frame.content_length, frame.content_crc)
        meta = checked(self.data[meta_at : frame.content_at], frame.meta_length, frame.meta_crc)
        try:
            frame.meta = None if meta is None else decode(frame, meta)
        except Wrong:
            frame.meta = None
        return frame

    def told_of(self, number):
        """Step 4: how much of the segment in front counts, None if this one does not tell, and what was torn there."""
        first = self.next_frame(PAGE, PAGE + 1, 0)
        succession = first and meta_of(first, SUCCESSION)
        if not succession or succession.number != number:
            succession = Record(length=None, torn=[])
        by_header = self.header and self.header.previous == number
        return self.header.previous_length if by_header else succession.length, succession.torn

    def scan(self, told, torn, sequence):
        """Step 5: frames and holes."""
        size, frames, holes, at = len(self.data), [], [], PAGE
        end = size if told is None else min(told, size)
        while at < end:
            if ranges := [t for t in torn if within(at, t)]:
                at = ranges[0].offset + ranges[0].length
                continue
            stop = min([end] + [t.offset for t in torn if t.offset > at])
            frame = self.next_frame(at, stop, sequence)
            if frame and frame.offset == at:
                frames.append(frame)
                at, sequence = frame.end, frame.sequence
                continue
            stop = frame.offset if frame else stop
            seals = sum(meta_of(frame, SEAL) is not None for frame in frames)
            zeros_from = at + len(self.data[at:stop].rstrip(b"\0"))
            if stop == end:
                holes.append(hole(at, stop if told is not None and not seals else zeros_from))
            elif seals != 1 or zeros_from > at:
                holes.append(hole(at, stop))
            at = stop
        holes.append(hole(size, max(size, told or 0)))
        return frames, [hole for hole in holes if hole.length]


class Account:
    def __init__(self, directory):
        self.directory, self.journal, self.number, self.sequence = directory, None, 0, 0
        self.counted, self.unnamed = [0, 0], [0, 0]  # messages, recipients; the first is T of the page
        self.messages, self.states, self.all_sent = 0, {}, 0
        self.segments, self.bytes, self.blobs, self.damage, self.torn = 0, 0, [], [], []
        self.left = None

    def begin(self, header):
        """Step 1: what the newest header says of the segments that left."""
        self.left, self.number = header, header.first - 1
        self.counted = [header.messages_before, header.recipients_before]

    def place(self, proven, segment, at, length, kind, ids=(), file=None):
        ids = [ulid(bits) for bits in ids if bits]
        place = {"segment": segment, "offset": at, "bytes": length, "kind": kind, "ids": ids, "file": file}
        (self.damage if proven else self.torn).append(place)

    def compare(self, segment, told, torn=(0, 0)):
        """Step 3, and what step 9 says of marks and seals."""
        missing = [max(0, count - known - gone) for count, known, gone in zip(told, self.counted, torn)]
        if max(told) < TOO_LARGE and any(missing):
            self.place(True, segment.name, 0, 0, "unnamed")
            self.counted = [known + more for known, more in zip(self.counted, missing)]
            self.unnamed = [known + more for known, more in zip(self.unnamed, missing)]

    def add(self, segment, following):
        """Steps 1 to 9 for a segment; `following` is the next, or None."""
        self.add_header(segment)
        size = len(segment.data)
        told, torn = following.told_of(segment.number) if following else (None, [])
        limit = size if told is None else told
        frames, holes = segment.scan(told, torn, self.sequence)
        self.sequence = frames[-1].sequence if frames else self.sequence

        marks = [frame for frame in frames if meta_of(frame, MARK)]
        batches = [min(mark.meta.batch, mark.offset) for mark in marks]
        for batch in batches:
            holes = [part for found in holes for part in split(found, batch)]
        holes = [found for found in holes if found.length]
        named = [n for mark in marks for n in mark.meta.named if mark.meta.batch <= n.offset < mark.offset]
        passed = [n for n in named if n.kind == ACCEPTED and any(within(n.offset, t) for t in torn)]
        there = {frame.offset for frame in frames}
        named = [n for n in named if n.offset not in there]

        seals = [frame for frame in frames if meta_of(frame, SEAL)]
        sealed, proven = len(seals) > 1, max(batches, default=0)
        if len(seals) == 1:
            end, second = seals[0].end, round_up(seals[0].end, PAGE)
            second_end = second + end - seals[0].offset
            if limit == second_end and not any(within(second, found) for found in holes + torn):
                holes.append(hole(second, second_end))
            wrong = holes + [frame for frame in frames if frame.meta is None]
            sealed = limit == second_end or not any(found.offset >= end for found in wrong)
            proven = max(proven, end)
        if sealed or following:
            proven = max(limit, size)
        made = segment.header.made if segment.header else 0
        if limit <= size < made and len(seals) < 2:
            least = second_end if seals else made
            if size < least and not (seals and size == second):
                self.place(True, segment.name, size, least - size, "frame")

        for item in sorted(frames + holes, key=lambda item: item.offset):
            safe = item.offset < proven
            if item.kind is None:
                self.add_hole(segment, item, [n for n in named if within(n.offset, item)], safe)
            else:
                self.add_frame(segment, item, safe)
            if safe and (counts := meta_of(item, MARK, SEAL)):
                gone = [n.recipients for n in passed if n.offset < item.offset]
                self.compare(segment, [counts.messages, counts.recipients], [len(gone), sum(gone)])

    def add_header(self, segment):
        header = segment.header
        if segment.number > self.number + 1:
            self.place(True, f"seg-{self.number + 1:020}.rj", 0, 0, "missing-segment")
        self.number, self.segments, self.bytes = segment.number, self.segments + 1, self.bytes + len(segment.data)
        if not segment.page_right:
            self.place(True, segment.name, 0, PAGE, "header-page")
        if header:
            if self.journal not in (None, header.journal):
                raise Refused(f"{segment.name} belongs to another journal than the segments in front of it")
            self.journal, told = header.journal, [header.messages, header.recipients]
            self.compare(segment, told)
            if segment.page_right and max(told) < TOO_LARGE:
                self.counted = told

    def add_hole(self, segment, found, named, proven):
        self.place(proven, segment.name, found.offset, found.length, "frame", [n.id for n in named])
        for message in named:
            if proven and message.kind in MESSAGES:
                self.add_message(message, [QUARANTINED] * message.recipients)

    def add_frame(self, segment, frame, proven):
        whole = proven, segment.name, frame.offset, frame.end - frame.offset
        if frame.padding_wrong:
            self.place(proven, segment.name, frame.padding_at, frame.end - frame.padding_at, "padding")
        if not proven and (frame.meta is None or frame.content is None):
            self.place(*whole, "content", [frame.id])
            return
        if frame.meta is None:
            self.place(*whole, "envelope", [frame.id])
        elif frame.content is None:
            self.place(proven, segment.name, frame.content_at, frame.content_length, "content", [frame.id])
        if frame.kind in MESSAGES and frame.meta is None:
            self.add_message(frame, [QUARANTINED] * frame.recipients)
        elif frame.kind in MESSAGES:
            right = self.blob_right(segment, frame) if frame.meta.blob else frame.content is not None
            told = [s.state if s.state in FINAL else PENDING for s in getattr(frame.meta, "states", ())]
            states = told or [PENDING] * len(frame.meta.recipients)
            self.add_message(frame, states if right else [QUARANTINED if s == PENDING else s for s in states], right)
        elif attempted := meta_of(frame, ATTEMPTED):
            self.add_results(frame.id, attempted.results)
        elif operated := meta_of(frame, OPERATED):
            self.add_action(frame.id, operated)

    def add_message(self, told, states, right=False):
        if told.kind == ACCEPTED:
            self.counted = [self.counted[0] + 1, self.counted[1] + told.recipients]
        known = self.states.get(told.id)
        if known is None:
            self.messages, self.states[told.id] = self.messages + 1, states
        elif told.kind == CARRIED and right:
            self.states[told.id] = [then if now == QUARANTINED else now for now, then in zip(known, states)]

    def add_action(self, message, operated):
        states = self.states.get(message, [])
        for recipient in operated.recipients:
            state = states[recipient] if recipient < len(states) else None
            if operated.action in (BOUNCE, REMOVE) and state == PENDING:
                states[recipient] = BOUNCED if operated.action == BOUNCE else REMOVED
            elif operated.action == UNDO and state in (BOUNCED, REMOVED):
                states[recipient] = PENDING

    def add_results(self, message, results):
        states = self.states.get(message, [])
        for result in results:
            final = result.outcome in (SENT, QUARANTINED) and result.recipient < len(states)
            if final and (states[result.recipient] == PENDING or result.outcome == SENT):
                states[result.recipient] = result.outcome
        if states and set(states) == {SENT}:
            self.all_sent += len(self.states.pop(message))

    def blob_right(self, segment, frame):
        name, length = frame.meta.blob.name.hex(), frame.meta.blob.length
        at_fault = [frame.id], f"blob/{name}"
        self.blobs.append((name, length))
        if frame.content is None:
            return False
        try:
            data = read(self.directory, "blob", name)
        except FileNotFoundError:
            self.place(True, segment.name, frame.offset, length, "blob-missing", *at_fault)
            return False
        wrong, table = max(0, len(data) - length), io.BytesIO(frame.content)
        for at in range(0, length, PIECE):
            piece = min(PIECE, length - at)
            wrong += piece if checked(data[at : at + piece], piece, U32(table)) is None else 0
        if wrong:
            self.place(True, segment.name, frame.offset, wrong, "blob", *at_fault)
        return not wrong

    def told(self):
        """Step 10."""
        states, named = list(chain(*self.states.values())), {name for name, _ in self.blobs}
        left = self.left or Record(**dict.fromkeys(LEFT, 0))
        gone = sum(getattr(left, name) for name in ("sent", "bounced", "expired", "removed", "quarantined"))
        shelf = os.path.join(self.directory, "blob")
        files = sorted(os.listdir(shelf)) if os.path.isdir(shelf) else []
        return {
            "state": "damaged" if self.damage else "torn" if self.torn else "clean",
            "transactions": self.messages + self.unnamed[0] + left.messages_left,
            "accepted": len(states) + self.all_sent + self.unnamed[1] + gone,
            "pending": states.count(PENDING),
            "sent": states.count(SENT) + self.all_sent + left.sent,
            "bounced": states.count(BOUNCED) + left.bounced,
            "expired": left.expired,
            "removed": states.count(REMOVED) + left.removed,
            "quarantined": states.count(QUARANTINED) + self.unnamed[1] + left.quarantined,
            "segments": self.segments,
            "bytes": self.bytes,
            "blobs": len(self.blobs),
            "blob_bytes": sum(length for _, length in self.blobs),
            "damage": self.damage,
            "torn": self.torn,
            "orphans": [f"blob/{f}" for f in files if re.fullmatch(r"[0-9a-f]{32}(\.part)?", f) and f not in named],
        }


def main(directory):
    names = (re.fullmatch(r"seg-([0-9]{20})\.rj", name) for name in os.listdir(directory))
    numbers = sorted(int(name[1]) for name in names if name and int(name[1]) < 1 << 64)
    account = Account(directory)
    newest = next((header for n in reversed(numbers) if (header := Segment(directory, n).header)), None)
    if newest and newest.format >= 2:
        account.begin(newest)
        numbers = [n for n in numbers if n >= newest.first]
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
