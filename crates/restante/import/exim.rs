//! Exim's spool: `ID-H` has the envelope and the headers, `ID-D` the body, and `ID-J`, while it is there, who got the message
//! since `ID-H` was written.
//!
//! Does not lock `ID-D` as Exim does: Exim is to be stopped first.

use super::{Item, Letter, Listing, Unreadable, append_with_crlf, contents, push_once, walk};
use anyhow::bail;
use restante_envelope::{DsnRequest, EnvelopeId, Notify, OriginalRecipient, RecipientDsn, Ret};
use std::collections::{HashMap, HashSet};
use std::io;
use std::path::Path;

const H: &str = "-H";

pub(super) fn list(path: &Path) -> anyhow::Result<Listing> {
    let input = path.join("input");
    if !input.is_dir() {
        bail!(
            "{} is no spool directory of Exim: there is no `input` in it (`exim -bP spool_directory`)",
            path.display()
        );
    }
    let (mut seen, mut listing) = (Vec::new(), Listing::default());
    walk(&input, 0, &mut seen)?;
    for mut file in listing.plain(seen) {
        if let Some(id) = file.item.name.strip_suffix(H) {
            file.item.name = id.to_owned();
            listing.items.push(file.item);
        } else if file.item.name.ends_with("-D") && !beside(&file.item.path, "-D", H).exists() {
            listing.left.push((file.item.path, "its sender has no 250 for it: there is no -H file beside it"));
        }
    }
    Ok(listing)
}

/// Another file of the same message.
fn beside(path: &Path, from: &str, to: &str) -> std::path::PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!("{}{to}", name.strip_suffix(from).unwrap_or(&name)))
}

pub(super) fn read(item: &Item, head: &[u8]) -> Result<Letter, Unreadable> {
    let data = match contents(&beside(&item.path, H, "-D")) {
        Err(Unreadable::Io(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Unreadable::Missing("its -D file, with the body, is missing"));
        }
        data => data?,
    };
    let since = match contents(&beside(&item.path, H, "-J")) {
        Err(Unreadable::Io(error)) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        since => since?,
    };
    parse(&item.name, head, &data, &since)
}

/// The lines of a header file.
struct Lines<'a> {
    rest: &'a [u8],
    line: usize,
}

impl<'a> Lines<'a> {
    fn wrong<T>(&self, what: &'static str) -> Result<T, Unreadable> {
        Err(Unreadable::Line { file: "-H", line: self.line, what })
    }

    fn next(&mut self) -> Result<&'a [u8], Unreadable> {
        self.line += 1;
        let end = memchr::memchr(b'\n', self.rest);
        let Some((line, rest)) = end.and_then(|end| self.rest.split_at_checked(end)) else {
            return self.wrong("the file ends here: it is cut short");
        };
        self.rest = rest.get(1..).unwrap_or_default();
        Ok(line)
    }

    /// The next bytes, whatever is in them.
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Unreadable> {
        let Some((taken, rest)) = self.rest.split_at_checked(bytes) else {
            return self.wrong("a length leads behind the end of the file: it is cut short");
        };
        self.rest = rest;
        self.line += memchr::memchr_iter(b'\n', taken).count();
        Ok(taken)
    }

    fn text(&mut self) -> Result<&'a str, Unreadable> {
        let line = self.next()?;
        std::str::from_utf8(line).or_else(|_| self.wrong("that is no text"))
    }
}

/// What the three files say; `since` is empty if there is no third.
pub(crate) fn parse(id: &str, head: &[u8], data: &[u8], since: &[u8]) -> Result<Letter, Unreadable> {
    let mut lines = Lines { rest: head, line: 0 };
    if lines.next()?.strip_suffix(H.as_bytes()) != Some(id.as_bytes()) {
        return lines.wrong("it does not begin with its own name: that is no header file of Exim");
    }
    let _login_uid_and_gid = lines.next()?;
    let sender = lines.text()?.strip_prefix('<').and_then(|text| text.strip_suffix('>'));
    let Some(reverse_path) = sender.map(str::to_owned) else {
        return lines.wrong("the sender does not stand in angle brackets");
    };
    let arrived = lines.text()?.split(' ').next().unwrap_or_default().to_owned();
    let (options, first) = options(&mut lines)?;
    let mut delivered = tree(&mut lines, first)?;
    delivered.extend(since.split(|b| *b == b'\n').filter_map(|line| std::str::from_utf8(line).ok()).map(canonical));
    let (listed, mut asked) = recipients(&mut lines)?;
    let all = listed.len();
    let recipients: Vec<String> = listed.into_iter().filter(|to| !delivered.contains(&canonical(to))).collect();
    let mut content = Vec::with_capacity(head.len() + data.len() + data.len() / 32);
    headers(&mut lines, &mut content)?;
    content.extend_from_slice(b"\r\n");
    let body = data.strip_prefix(id.as_bytes()).and_then(|data| data.strip_prefix(b"-D\n"));
    let Some(body) = body else {
        let what = "it does not begin with its own name: that is no data file of Exim";
        return Err(Unreadable::Line { file: "-D", line: 1, what });
    };
    if options.is_wire_format {
        content.extend_from_slice(body);
        if !body.is_empty() && !body.ends_with(b"\r\n") {
            content.extend_from_slice(b"\r\n");
        }
    } else {
        append_with_crlf(body, &mut content);
    }
    let hold = options
        .frozen
        .as_deref()
        .map(|at| format!("it was frozen in the Exim spool that it was imported from, at {at}"));
    asked.retain(|to, _| recipients.contains(to));
    let delivered = all - recipients.len();
    let Options { dsn, smtputf8, .. } = options;
    Ok(Letter { reverse_path, delivered, recipients, asked, dsn, smtputf8, hold, arrived, content })
}

#[derive(Default)]
struct Options {
    frozen: Option<String>,
    is_wire_format: bool,
    smtputf8: bool,
    dsn: DsnRequest,
}

/// All of them; the line behind the last comes back.
fn options<'a>(lines: &mut Lines<'a>) -> Result<(Options, &'a [u8]), Unreadable> {
    let mut options = Options::default();
    loop {
        let line = lines.next()?;
        let Some(option) = line.strip_prefix(b"-") else { return Ok((options, line)) };
        // Two: what a stranger said. Three or a parenthesis: the same, with who vouches for it.
        let option = option.strip_prefix(b"-").unwrap_or(option);
        let mut words = option.split(|b| *b == b' ');
        match words.next().unwrap_or_default() {
            b"frozen" => {
                let at = words.next().map(String::from_utf8_lossy).unwrap_or_default();
                let at = at.parse::<u64>().ok().map(|s| s.saturating_mul(1000));
                let at = at.map(|ms| restante_envelope::Timestamp::from_unix_ms(ms).to_string());
                options.frozen = Some(at.unwrap_or_else(|| "a time that it does not tell".to_owned()));
            }
            b"spool_file_wireformat" => options.is_wire_format = true,
            b"smtputf8" => options.smtputf8 = true,
            // In xtext, as it came.
            b"dsn_envid" => {
                let text = words.next().map(String::from_utf8_lossy).unwrap_or_default();
                let malformed = |_| Unreadable::Dsn { what: "-dsn_envid", shown: text.escape_debug().to_string() };
                options.dsn.envid = Some(EnvelopeId::parse(&text).map_err(malformed)?);
            }
            b"dsn_ret" => {
                options.dsn.ret = match words.next().unwrap_or_default() {
                    b"1" => Some(Ret::Full),
                    b"2" => Some(Ret::Headers),
                    _ => return lines.wrong("-dsn_ret is neither 1 nor 2"),
                }
            }
            // A variable: its value has lines of its own, and the last word says how long it is.
            b"acl" | b"aclc" | b"aclm" => {
                let len = words.next_back().and_then(|len| std::str::from_utf8(len).ok()?.parse::<usize>().ok());
                let Some(len) = len else { return lines.wrong("a variable has no length") };
                let _value = lines.take(len)?;
                if !lines.next()?.is_empty() {
                    return lines.wrong("a variable is longer than it says");
                }
            }
            _ => {}
        }
    }
}

/// Whom it is not to be delivered to any more: a binary tree, each node with two letters that say whether there is more to the
/// left and to the right.
fn tree(lines: &mut Lines<'_>, first: &[u8]) -> Result<HashSet<String>, Unreadable> {
    let mut addresses = HashSet::new();
    if first == b"XX" {
        return Ok(addresses);
    }
    let (mut line, mut nodes) = (first, 1_usize);
    loop {
        let (left, right, address) = match line {
            [left @ (b'Y' | b'N'), right @ (b'Y' | b'N'), b' ', address @ ..] => (left, right, address),
            _ => return lines.wrong("that is no list of those who have it already"),
        };
        addresses.insert(canonical(&String::from_utf8_lossy(address)));
        nodes = nodes - 1 + usize::from(*left == b'Y') + usize::from(*right == b'Y');
        if nodes == 0 {
            return Ok(addresses);
        }
        line = lines.next()?;
    }
}

/// As many as the first line says, the empty line behind them, and what is asked for each.
fn recipients(lines: &mut Lines<'_>) -> Result<(Vec<String>, HashMap<String, RecipientDsn>), Unreadable> {
    let Ok(count) = lines.text()?.trim().parse::<usize>() else {
        return lines.wrong("here should stand how many recipients there are");
    };
    let (mut recipients, mut known, mut asked) = (Vec::new(), HashSet::new(), HashMap::new());
    for _ in 0..count {
        let line = lines.text()?;
        let address = address(line);
        let Some(dsn) = dsn(line.get(address.len()..).unwrap_or_default()) else {
            return lines.wrong("what is asked for this recipient (NOTIFY, ORCPT) cannot be read");
        };
        if dsn != RecipientDsn::default() {
            asked.insert(address.to_owned(), dsn);
        }
        push_once(&mut recipients, &mut known, address.to_owned());
    }
    if !lines.next()?.is_empty() {
        return lines.wrong("there are more recipients than it says");
    }
    Ok((recipients, asked))
}

/// Behind an address: ` ORCPT LENGTH,NOTIFY ERRORS-TO LENGTH,PARENT#FLAGS`, the first two words if a flag says so. Bits of NOTIFY:
/// 2 never, 4 success, 8 failure, 16 delay.
fn dsn(rest: &str) -> Option<RecipientDsn> {
    let flags = rest.rsplit_once('#').map_or(Some(0), |(_, flags)| flags.parse::<u32>().ok())?;
    if flags & 2 == 0 {
        return Some(RecipientDsn::default());
    }
    let (original, behind) = rest.strip_prefix(' ')?.split_once(' ')?;
    let (_length, bits) = behind.split_once(' ')?.0.split_once(',')?;
    let notify = match bits.parse::<u8>().ok()? >> 1 {
        0 => None,
        bits => Some(Notify::from_bits(bits)?),
    };
    let original = match original {
        "" => None,
        original => Some(OriginalRecipient::parse(original).ok()?),
    };
    Some(RecipientDsn { notify, original })
}

/// What may stand behind an address, for Exim's own use, stands behind a space that is in no quotes.
fn address(line: &str) -> &str {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let end = line.bytes().position(|b| {
        let ends = b == b' ' && !is_quoted;
        is_quoted ^= b == b'"' && !is_escaped;
        is_escaped = b == b'\\' && !is_escaped;
        ends
    });
    end.and_then(|end| line.get(..end)).unwrap_or(line)
}

/// The same mailbox: letter case counts in front of the `@` alone. One told apart that is the same gets a message twice; one
/// taken for another would get none.
fn canonical(address: &str) -> String {
    match address.rsplit_once('@') {
        Some((local, domain)) => format!("{local}@{}", domain.to_ascii_lowercase()),
        None => address.to_owned(),
    }
}

/// Each with its length and a letter in front: `*` for what Exim has replaced.
fn headers(lines: &mut Lines<'_>, content: &mut Vec<u8>) -> Result<(), Unreadable> {
    while !lines.rest.is_empty() {
        lines.line += 1;
        let digits = lines.rest.iter().take_while(|b| b.is_ascii_digit()).count();
        let len = std::str::from_utf8(lines.take(digits)?).ok().and_then(|digits| digits.parse::<usize>().ok());
        let (Some(len), &[letter, b' ']) = (len, lines.take(2)?) else {
            return lines.wrong("a header does not begin with its length");
        };
        let text = lines.take(len)?;
        lines.line = lines.line.saturating_sub(1);
        if letter != b'*' {
            append_with_crlf(text, content);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As Exim 4.96 wrote it, with more recipients and a header that was rewritten.
    const HEAD: &str = "1xVQHC-0007Cx-2w-H\nroot 0 0\n<a@example.net>\n1795425834 0\n-received_time_usec .914788\n\
        --helo_name c.test\n--host_address [192.0.2.7]:0\n-aclm _note 9\ntwo\nlines\n-body_linecount 2\n-deliver_firsttime\n\
        -frozen 1795425834\nYY had@example.test\nNN b@example.test\nNN z@example.test\n5\nhad@Example.TEST\n\
        \"q d\"@example.test\nplain@example.test a@example.net 13,-1#1\nsince@example.test\nHad@example.test\n\n\
        040P Received: from x\n\tby exim.example.net;\n\t010* Subject: \n010  Subject: s\n";
    const ID: &str = "1xVQHC-0007Cx-2w";

    fn head() -> String {
        let received = "Received: from x\n\tby exim.example.net\n";
        let headers = format!("{:03}P {received}011* Subject: o\n011  Subject: n\n", received.len());
        format!("{}\n\n{headers}", HEAD.split_once("\n\n").unwrap().0)
    }

    #[test]
    fn a_spool_file_is_what_exim_would_still_send() {
        let data = format!("{ID}-D\nx\n.y\nlast");
        let letter = parse(ID, head().as_bytes(), data.as_bytes(), b"since@example.test\n").unwrap();
        assert_eq!(letter.recipients, ["\"q d\"@example.test", "plain@example.test", "Had@example.test"]);
        assert_eq!((&*letter.reverse_path, &*letter.arrived, letter.delivered), ("a@example.net", "1795425834", 2));
        assert!(letter.hold.unwrap().ends_with("at 2026-11-23T09:23:54.000Z"));
        let expected = "Received: from x\r\n\tby exim.example.net\r\nSubject: n\r\n\r\nx\r\n.y\r\nlast\r\n";
        assert_eq!(String::from_utf8(letter.content).unwrap(), expected);
    }

    #[test]
    fn a_cut_or_foreign_file_is_named_and_not_taken() {
        let (head, data) = (head(), format!("{ID}-D\n"));
        let received = head.len() - 22 - 1;
        for len in (0..head.find("\n\n").unwrap()).chain([received, head.len() - 1]) {
            assert!(parse(ID, &head.as_bytes()[..len], data.as_bytes(), b"").is_err(), "cut at {len}");
        }
        for (head, data) in [(&*head, "1xVQHC-0007Cx-2x-D\n"), (&head.replace("\n5\n", "\n4\n"), &*data), ("", &*data)]
        {
            assert!(parse(ID, head.as_bytes(), data.as_bytes(), b"").is_err());
        }
        let error = parse(ID, head.replace("YY", "ZZ").as_bytes(), data.as_bytes(), b"").unwrap_err().to_string();
        assert_eq!(error, "line 14 of -H: that is no list of those who have it already");
    }

    #[test]
    fn what_the_sender_wants_to_hear_is_read() {
        let head =
            head().replace("-deliver_firsttime\n", "-deliver_firsttime\n-dsn_envid q+2B1\n-dsn_ret 2\n-smtputf8\n");
        let asked =
            "\"q d\"@example.test rfc822;q+2Br@x 10,20  0,-1#3\nplain@example.test  0,2 a@example.net 13,-1#3\n";
        let head = head.replace("\"q d\"@example.test\nplain@example.test a@example.net 13,-1#1\n", asked);
        let data = format!("{ID}-D\n");
        let letter = parse(ID, head.as_bytes(), data.as_bytes(), b"plain@example.test\n").unwrap();
        assert!(letter.smtputf8 && letter.dsn.ret == Some(Ret::Headers));
        assert_eq!(letter.dsn.envid.as_ref().unwrap().as_str(), "q+2B1");
        // Who has it already has no wishes any more.
        assert_eq!(letter.asked.len(), 1);
        let RecipientDsn { notify, original } = &letter.asked["\"q d\"@example.test"];
        assert_eq!(
            (notify.unwrap().to_string(), original.as_ref().unwrap().as_str()),
            ("SUCCESS,DELAY".into(), "rfc822;q+2Br@x")
        );
        for (good, bad) in
            [("10,20", "10,6"), ("rfc822;q", "rfc822q"), ("_ret 2", "_ret 3"), ("q+2B1", "q+0A1"), ("#3", "#x")]
        {
            assert!(parse(ID, head.replace(good, bad).as_bytes(), data.as_bytes(), b"").is_err(), "{bad}");
        }
    }

    #[test]
    fn what_came_by_bdat_is_taken_as_it_came() {
        let head = head().replace("-deliver_firsttime", "-spool_file_wireformat");
        let letter = parse(ID, head.as_bytes(), format!("{ID}-D\n.a\r\n\r\nb\r\n").as_bytes(), b"").unwrap();
        assert!(letter.content.ends_with(b"\r\n\r\n.a\r\n\r\nb\r\n"));
    }

    proptest! {
        #[test]
        fn no_bytes_break_it(head: Vec<u8>, data: Vec<u8>, cut in 0usize..600, with in 0usize..600) {
            let good = self::head();
            let _any = parse(ID, &head, &data, &data);
            let _behind = parse(ID, &[good.as_bytes(), &head].concat(), &data, &head);
            let (cut, with) = (cut.min(good.len()), with.min(good.len()));
            let mixed = [&good.as_bytes()[..cut], &head, &good.as_bytes()[with..]].concat();
            if let Ok(letter) = parse(ID, &mixed, format!("{ID}-D\n").as_bytes(), b"") {
                prop_assert!(letter.content.len() <= mixed.len() * 2 + 2);
            }
        }
    }
}
