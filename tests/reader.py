#!/usr/bin/env python3
"""A second reader of the journal, after journal/FORMAT.md: it shares no code with the first, and no language.
`reader.py DIR` prints one JSON object: what `restante verify --json` says of DIR, as far as both can know it.
It reads and refuses to write; it is made to be compared, not to be fast."""
import json, os, re, struct, sys

TABLE = []
for n in range(256):
    for _ in range(8):
        n = n >> 1 ^ (0x82F63B78 if n & 1 else 0)
    TABLE.append(n)
PAGE, FRAME, PIECE, META_MAX = 4096, 64, 256 * 1024, 16 << 20
ACCEPTED, ATTEMPTED, OPERATED, SERVED, SUCCESSION, MARK, SEAL = 1, 2, 3, 4, 5, 16, 17


def crc(data):
    c = 0xFFFFFFFF
    for byte in data:
        c = TABLE[(c ^ byte) & 255] ^ c >> 8
    return c ^ 0xFFFFFFFF


def aligned(n):
    return (n + 7) & ~7


def is_zero(data):
    return not data.strip(b"\0")


def ulid(raw):
    """An id as text: the 128 bits in Crockford's base 32, 26 digits."""
    bits = int.from_bytes(raw, "little")
    return "".join("0123456789ABCDEFGHJKMNPQRSTVWXYZ"[bits >> 5 * n & 31] for n in range(25, -1, -1))


class Wrong(Exception):
    """A meta that does not decode."""


class Meta:
    """Reads fields one after the other."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        self.at += count
        if self.at > len(self.data):
            raise Wrong
        return self.data[self.at - count:self.at]

    def num(self, size):
        return int.from_bytes(self.take(size), "little")

    def text(self):
        try:
            return self.take(self.num(2)).decode()
        except UnicodeDecodeError:
            raise Wrong from None

    def addr(self):
        family = self.num(1)
        if family not in (4, 6):
            raise Wrong
        self.take(4 if family == 4 else 16)

    def many(self, size, one):
        return [one() for _ in range(self.num(size))]


class Frame:
    def __init__(self, seg, at):
        (self.kind, self.flags, self.recipients, self.tag, self.sequence, self.offset, self.id, self.meta_len, self.meta_crc,
         self.content_len, self.content_crc) = struct.unpack_from("<BBHIQQ16sIIII", seg.data, at + 8)
        self.header_crc = struct.unpack_from("<I", seg.data, at + 4)[0]
        self.valid = (seg.data[at:at + 4] == b"RJF1" and self.header_crc == crc(seg.data[at + 8:at + FRAME])
                      and self.offset == at and self.meta_len <= META_MAX)
        self.whole = FRAME + self.meta_len + self.content_len
        self.end = at + aligned(self.whole)

    def meta(self, seg):
        start = self.offset + FRAME
        data = seg.data[start:start + self.meta_len]
        return data if len(data) == self.meta_len and crc(data) == self.meta_crc else None

    def read(self, seg):
        """The decoded meta; none if it is wrong."""
        data = self.meta(seg)
        try:
            return None if data is None else decode(self, data)
        except Wrong:
            return None

    def content(self, seg):
        start = self.offset + FRAME + self.meta_len
        data = seg.data[start:start + self.content_len]
        return data if len(data) == self.content_len and crc(data) == self.content_crc else None


def decode(frame, data):
    """The fields of a meta that the account needs."""
    m = Meta(data)
    if frame.kind == ACCEPTED:
        m.num(8), m.take(2), m.addr(), m.num(2), m.num(8), m.text(), m.text(), m.text(), m.text()
        m.many(2, m.text)
        m.many(2, lambda: (m.num(2), m.text()))
        if not frame.flags & 2:
            return ()
        if m.at + 24 > len(data):
            raise Wrong
        name, size = data[-24:-8].hex(), int.from_bytes(data[-8:], "little")
        if frame.content_len != -(-size // PIECE) * 4:
            raise Wrong
        return name, size
    if frame.kind == ATTEMPTED:
        m.take(8 + 4 + 8 + 4 + 4)
        if m.num(1):
            m.text(), m.addr(), m.num(2), m.text()
        return m.many(2, lambda: outcome(m))
    if frame.kind == SUCCESSION:
        return m.num(8), m.num(8), m.many(4, lambda: (m.num(8), m.num(8)))
    if frame.kind == MARK:
        entry = struct.Struct("<16sQIHBx")
        return m.num(8), m.num(8), m.num(8), m.many(4, lambda: entry.unpack(m.take(32)))
    if frame.kind == SEAL:
        return m.num(8), m.num(8), m.num(8)
    return ()


def outcome(m):
    recipient, word = m.num(2), m.num(1)
    if word == 2:
        m.num(8)
    if m.num(1) == 0:
        m.take(2 + 1 + 2 + 2)
    m.text()
    return recipient, {1: "sent", 2: "pending", 3: "pending", 4: "quarantined"}[word]


class Segment:
    """One file: its header, and how the next one says that it ends."""

    def __init__(self, path, number):
        with open(path, "rb") as file:
            self.data = file.read()
        self.number, self.header = number, None
        for at in (2048, 0):
            copy = self.data[at:at + 96]
            if copy[:8] == b"RSTJRNL\x01" and len(copy) == 96 and crc(copy[:92]) == int.from_bytes(copy[92:], "little"):
                fields = struct.unpack("<8sHHI16sQQQQQQQII", copy)
                if fields[2] > 1:
                    sys.exit(f"segment {number} is of a later format")
                self.header, page = fields, copy + bytes(2048 - 96)
        self.page_wrong = not self.header or self.data[:PAGE] != page * 2 or self.header[5] != number
        self.tag = self.header[3] if self.header else next((f.tag for f in self.headers()), 0)
        self.made = self.header[12] if self.header else 0

    def headers(self):
        frames = (Frame(self, at) for at in range(PAGE, len(self.data) - FRAME + 1, 8) if self.data[at:at + 4] == b"RJF1")
        return (frame for frame in frames if frame.valid)

    def frame_at(self, at, sequence):
        if self.data[at:at + 4] != b"RJF1" or at + FRAME > len(self.data):
            return None
        frame = Frame(self, at)
        return frame if frame.valid and frame.tag == self.tag and frame.sequence > sequence else None

    def succession(self, number):
        frame = self.frame_at(PAGE, 0)
        told = frame.read(self) if frame and frame.kind == SUCCESSION else None
        return told if told and told[0] == number else None


class Hole:
    def __init__(self, start, end):
        self.offset, self.end, self.named = start, end, []


class Journal:
    """The account, built up segment by segment (section 6, by its steps)."""

    def __init__(self, path):
        self.path, self.damage, self.torn, self.messages = path, [], [], {}
        self.t, self.unnamed, self.sequence, self.blobs, self.blob_bytes = [0, 0], [0, 0], 0, 0, 0
        names = sorted(n for n in os.listdir(path) if re.fullmatch(r"seg-\d{20}\.rj", n))
        self.segments = [Segment(os.path.join(path, n), int(n[4:24])) for n in names]
        self.named_blobs, expected, journals = set(), 1, set()
        for seg, after in zip(self.segments, self.segments[1:] + [None]):
            if seg.number > expected:
                self.place(expected, 0, 0, "missing-segment")
            expected = seg.number + 1
            if seg.page_wrong:
                self.place(seg.number, 0, PAGE, "header-page")
            if seg.header:
                journals.add(seg.header[4])
                if len(journals) > 1:
                    sys.exit("two journals in one directory")
                self.compare(seg, seg.header[10], seg.header[11])
            self.read(seg, after)

    def place(self, number, offset, size, kind, ids=(), proven=True, file=None):
        entry = {"segment": f"seg-{number:020}.rj", "offset": offset, "bytes": size, "kind": kind,
                 "ids": [ulid(raw) for raw in ids if any(raw)]}
        (self.damage if proven else self.torn).append(entry | ({"file": file} if file else {}))

    def compare(self, seg, messages, recipients, forgiven=(0, 0)):
        more = [max(0, claim - t - f) for claim, t, f in zip((messages, recipients), self.t, forgiven)]
        if any(more):
            self.place(seg.number, 0, 0, "unnamed")
            self.t = [a + b for a, b in zip(self.t, more)]
            self.unnamed = [a + b for a, b in zip(self.unnamed, more)]

    def read(self, seg, after):
        size, told, ranges = len(seg.data), None, []
        if after:
            succession = after.succession(seg.number)
            if succession:
                told, ranges = succession[1], [(a, a + n) for a, n in succession[2]]
            if after.header and after.header[8] == seg.number:
                told = after.header[9]
        items, seals = self.walk(seg, size, told, ranges)
        if told is not None and told > size:
            items.append(Hole(size, told))
        frames = {i.offset for i in items if isinstance(i, Frame)}
        marks = [(i, i.read(seg)) for i in items if isinstance(i, Frame) and i.kind == MARK and i.read(seg)]
        forgiven, forgiven_at, proof = [0, 0], {}, 0
        for frame, (start, _, _, named) in marks:
            proof = max(proof, start)
            for n, hole in enumerate(items):
                if isinstance(hole, Hole) and hole.offset < start < hole.end:
                    items[n:n + 1] = [Hole(hole.offset, start), Hole(start, hole.end)]
                    items[n].named = hole.named
                    break
            for name in named:
                if any(a <= name[1] < b for a, b in ranges):
                    if name[4] == ACCEPTED:
                        forgiven = [forgiven[0] + 1, forgiven[1] + name[3]]
                elif name[1] not in frames:
                    for hole in items:
                        if isinstance(hole, Hole) and hole.offset <= name[1] < hole.end:
                            hole.named.append(name)
            forgiven_at[frame.offset] = forgiven
        sealed = len(seals) > 1
        if len(seals) == 1:
            proof = first = seals[0].end
            second = -(-first // PAGE) * PAGE
            if (size if told is None else told) == second + FRAME + 24:
                sealed = True
                holes = ranges + [(i.offset, i.end) for i in items if isinstance(i, Hole)]
                if not any(a <= second < b for a, b in holes):
                    items.append(Hole(second, second + FRAME + 24))
            else:
                torn = lambda i: isinstance(i, Hole) or i.read(seg) is None
                sealed = bool(after) or not any(i.offset >= first and torn(i) for i in items)
        if size < seg.made and (told is None or told <= size) and len(seals) < 2:
            second = -(-seals[0].end // PAGE) * PAGE if seals else None
            least = second + FRAME + 24 if seals else seg.made
            if size < least and size != second:
                self.place(seg.number, size, least - size, "frame")
        if sealed or after:
            proof = 1 << 64
        for item in items:
            proven = item.offset < proof
            if isinstance(item, Hole):
                self.take_hole(seg, item, proven)
                continue
            self.take_frame(seg, item, proven)
            if proven and item.kind in (MARK, SEAL) and item.read(seg):
                forgiven = forgiven_at.get(item.offset, forgiven)
                self.compare(seg, item.read(seg)[1], item.read(seg)[2], forgiven)

    def walk(self, seg, size, told, ranges):
        """Step 5: the frames and holes up to the limit."""
        items, seals, at = [], [], PAGE
        limit = size if told is None else min(told, size)
        past = lambda at: next((b for a, b in ranges if a <= at < b), None)
        while at < limit:
            if past(at):
                at = past(at)
                continue
            frame = seg.frame_at(at, self.sequence)
            if frame:
                items.append(frame)
                self.sequence, at = frame.sequence, frame.end
                if frame.kind == SEAL and frame.read(seg):
                    seals.append(frame)
                if frame.kind not in range(1, 6) and frame.kind not in (MARK, SEAL) and not frame.flags & 1:
                    sys.exit(f"a frame of a later format in segment {seg.number}")
                continue
            start, at = at, (at | 7) + 1
            while at < limit and not past(at) and not seg.frame_at(at, self.sequence):
                at += 8
            end = at = min(at, limit)
            between = at < limit and len(seals) == 1 and is_zero(seg.data[start:end])
            if at == limit and (told is None or seals):
                end = start + len(seg.data[start:end].rstrip(b"\0"))
            if end > start and not between:
                items.append(Hole(start, end))
        return items, seals

    def take_hole(self, seg, hole, proven):
        self.place(seg.number, hole.offset, hole.end - hole.offset, "frame", [n[0] for n in hole.named], proven)
        for raw, _, _, recipients, kind in hole.named:
            if proven and kind == ACCEPTED:
                self.accept(raw, recipients, "quarantined")

    def accept(self, raw, recipients, state):
        self.t = [self.t[0] + 1, self.t[1] + recipients]
        self.messages.setdefault(raw, [state] * recipients)

    def take_frame(self, seg, frame, proven):
        fields, content, is_mail = frame.read(seg), frame.content(seg), frame.kind == ACCEPTED
        place = lambda *rest: self.place(seg.number, *rest)
        padding = seg.data[frame.offset + frame.whole:frame.end]
        if not proven and (fields is None or content is None):
            place(frame.offset, frame.end - frame.offset, "content", [frame.id], False)
        elif fields is None:
            place(frame.offset, frame.end - frame.offset, "envelope", [frame.id])
            if is_mail:
                self.accept(frame.id, frame.recipients, "quarantined")
        elif is_mail:
            wrong = False
            if frame.flags & 2:
                self.blobs, self.blob_bytes = self.blobs + 1, self.blob_bytes + fields[1]
                self.named_blobs.add(fields[0])
            if content is None:
                wrong = True
                place(frame.offset + FRAME + frame.meta_len, frame.content_len, "content", [frame.id])
            elif frame.flags & 2:
                kind, size = self.look(*fields, content)
                wrong = kind is not None
                if wrong:
                    place(frame.offset, size, kind, [frame.id], True, "blob/" + fields[0])
            self.accept(frame.id, frame.recipients, "quarantined" if wrong else "pending")
        elif frame.kind == ATTEMPTED:
            states = self.messages.get(frame.id, [])
            for recipient, state in fields:
                if recipient < len(states) and (states[recipient] == "pending" or state == "sent"):
                    states[recipient] = state
        if not is_zero(padding):
            place(frame.offset + frame.whole, frame.end - frame.offset - frame.whole, "padding", (), proven)

    def look(self, name, size, table):
        try:
            with open(os.path.join(self.path, "blob", name), "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return "blob-missing", size
        wrong = max(0, len(data) - size)
        for at in range(0, size, PIECE):
            want, told = min(PIECE, size - at), table[at // PIECE * 4:][:4]
            piece = data[at:at + want]
            wrong += 0 if len(piece) == want and crc(piece) == int.from_bytes(told, "little") else want
        return ("blob", wrong) if wrong else (None, 0)

    def account(self):
        states = [state for message in self.messages.values() for state in message]
        try:
            files = sorted(os.listdir(os.path.join(self.path, "blob")))
        except FileNotFoundError:
            files = []
        orphans = [f for f in files if re.fullmatch(r"[0-9a-f]{32}(\.part)?", f) and f not in self.named_blobs]
        return {"state": "damaged" if self.damage else "torn" if self.torn else "clean",
                "transactions": len(self.messages) + self.unnamed[0], "accepted": len(states) + self.unnamed[1],
                "pending": states.count("pending"), "sent": states.count("sent"),
                "quarantined": states.count("quarantined") + self.unnamed[1], "segments": len(self.segments),
                "bytes": sum(len(s.data) for s in self.segments), "blobs": self.blobs, "blob_bytes": self.blob_bytes,
                "damage": self.damage, "torn": self.torn, "orphans": ["blob/" + f for f in orphans]}


if __name__ == "__main__":
    print(json.dumps(Journal(sys.argv[1]).account()))
