//! Reads one command line (RFC 5321 section 4.1.1). Judges syntax alone: not whether the command is due, and not what
//! stands between `<` and `>`.

use restante_envelope::{BodyType, DsnError, DsnRequest, EnvelopeId, Notify, OriginalRecipient, RecipientDsn, Ret};

/// RFC 5321 section 4.5.3.1.2: a domain is at most 255 octets.
const HELO_BYTES_MAX: usize = 255;

/// A well-formed command. Texts are printable ASCII and spaces; paths may be UTF-8, which is for RFC 6531 to judge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command<'l> {
    Ehlo(&'l str),
    Helo(&'l str),
    Mail {
        reverse_path: &'l str,
        size_bytes: u64,
        body: BodyType,
        smtputf8: bool,
        dsn: DsnRequest,
    },
    Rcpt {
        forward_path: &'l str,
        dsn: RecipientDsn,
    },
    Data,
    Bdat {
        bytes: u64,
        last: bool,
    },
    Etrn(&'l str),
    /// Not read yet: who must not say it is told that first.
    Xclient(&'l str),
    Rset,
    Noop,
    Quit,
    Vrfy,
    Help,
    StartTls,
}

/// Why a line is no command that we carry out. The text is what the peer is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("command not recognized")]
    Unknown,
    #[error("command not implemented")]
    NotImplemented,
    #[error("syntax: BDAT size [LAST]; what would follow it is no command")]
    BdatSyntax,
    #[error("syntax: ETRN domain")]
    EtrnSyntax,
    #[error("syntax: XCLIENT attribute=value .., of {}", crate::xclient::ATTRIBUTES)]
    XclientSyntax,
    #[error("this is an SMTP server")]
    Http,
    #[error("control or 8-bit character in command")]
    NotText,
    #[error("syntax: EHLO domain")]
    HeloSyntax,
    #[error("this command takes no argument")]
    NeedlessArgument,
    #[error("this command needs an argument")]
    NoArgument,
    #[error("syntax: MAIL FROM:<address>, with the angle brackets")]
    MailSyntax,
    #[error("syntax: RCPT TO:<address>, with the angle brackets")]
    RcptSyntax,
    #[error("address is neither ASCII nor UTF-8")]
    AddressNotText,
    #[error("malformed parameter")]
    ParameterSyntax,
    #[error("parameter given twice")]
    ParameterTwice,
    #[error("{0}")]
    Dsn(#[from] DsnError),
    #[error("parameter not recognized or not implemented")]
    ParameterUnknown,
}

impl<'l> Command<'l> {
    /// Reads a line without its CRLF.
    pub(crate) fn parse(line: &'l [u8]) -> Result<Self, CommandError> {
        // Whatever is wrong with a line that begins so: the sender goes on with octets that are no commands.
        let is_bdat = starts_with(line, b"BDAT");
        Self::read(line).map_err(|error| if is_bdat { CommandError::BdatSyntax } else { error })
    }

    fn read(line: &'l [u8]) -> Result<Self, CommandError> {
        let text = text_of(line)?.trim_end_matches(' ');
        let (verb, argument) = text.split_once(' ').unwrap_or((text, ""));
        let argument = argument.trim_start_matches(' ');
        let bare = |command| if argument.is_empty() { Ok(command) } else { Err(CommandError::NeedlessArgument) };
        match verb.to_ascii_uppercase().as_str() {
            "EHLO" => helo_argument(argument).map(Self::Ehlo),
            "HELO" => helo_argument(argument).map(Self::Helo),
            "MAIL" => mail(argument),
            "RCPT" => rcpt(argument),
            "DATA" => bare(Self::Data),
            "RSET" => bare(Self::Rset),
            "QUIT" => bare(Self::Quit),
            "STARTTLS" => bare(Self::StartTls),
            "NOOP" => Ok(Self::Noop),
            "HELP" => Ok(Self::Help),
            "VRFY" if argument.is_empty() => Err(CommandError::NoArgument),
            "VRFY" => Ok(Self::Vrfy),
            "ETRN" if argument.is_empty() || argument.contains(' ') => Err(CommandError::EtrnSyntax),
            "ETRN" => Ok(Self::Etrn(argument)),
            "XCLIENT" => Ok(Self::Xclient(argument)),
            "EXPN" | "AUTH" | "ATRN" | "TURN" | "SEND" | "SOML" | "SAML" | "BURL" => Err(CommandError::NotImplemented),
            "BDAT" => bdat(argument),
            "GET" | "POST" | "PUT" | "HEAD" | "CONNECT" | "OPTIONS" | "DELETE" | "PATCH" | "TRACE" | "PRI" => {
                Err(CommandError::Http)
            }
            _ => Err(CommandError::Unknown),
        }
    }
}

fn starts_with(line: &[u8], verb: &[u8]) -> bool {
    line.get(..verb.len()).is_some_and(|head| head.eq_ignore_ascii_case(verb))
}

/// The line as text, if it is one: ASCII, but where an address may stand.
fn text_of(line: &[u8]) -> Result<&str, CommandError> {
    if line.iter().any(u8::is_ascii_control) {
        return Err(CommandError::NotText);
    }
    let has_address = starts_with(line, b"MAIL ") || starts_with(line, b"RCPT ");
    match std::str::from_utf8(line) {
        Ok(text) if text.is_ascii() || has_address || starts_with(line, b"VRFY ") => Ok(text),
        Err(_) if has_address => Err(CommandError::AddressNotText),
        _ => Err(CommandError::NotText),
    }
}

/// The name goes into our Received header as it is, so it must not look like any other part of it.
pub(crate) fn helo_argument(name: &str) -> Result<&str, CommandError> {
    let fits = (1..=HELO_BYTES_MAX).contains(&name.len());
    if fits && name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'(' | b')')) {
        Ok(name)
    } else {
        Err(CommandError::HeloSyntax)
    }
}

fn mail(argument: &str) -> Result<Command<'_>, CommandError> {
    let (reverse_path, parameters) = path(argument, "FROM:").ok_or(CommandError::MailSyntax)?;
    let (mut size_bytes, mut body, mut smtputf8, mut dsn) = (None, None, false, DsnRequest::default());
    for parameter in words(parameters) {
        let (keyword, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        // One given twice is a client's library and its user both being careful: the last counts. Not of those that say what is to
        // come back to whom.
        match keyword.to_ascii_uppercase().as_str() {
            "SIZE" => size_bytes = Some(size(value)?),
            "BODY" => body = Some(body_type(value)?),
            // RFC 6531 section 3.4: without a value.
            "SMTPUTF8" if keyword.len() == parameter.len() => smtputf8 = true,
            "SMTPUTF8" => return Err(CommandError::ParameterSyntax),
            "RET" => once(&mut dsn.ret, Ret::parse(value)?)?,
            "ENVID" => once(&mut dsn.envid, EnvelopeId::parse(value)?)?,
            _ => return Err(CommandError::ParameterUnknown),
        }
    }
    let (size_bytes, body) = (size_bytes.unwrap_or(0), body.unwrap_or_default());
    Ok(Command::Mail { reverse_path, size_bytes, body, smtputf8, dsn })
}

fn rcpt(argument: &str) -> Result<Command<'_>, CommandError> {
    let (forward_path, parameters) = path(argument, "TO:").ok_or(CommandError::RcptSyntax)?;
    let mut dsn = RecipientDsn::default();
    for parameter in words(parameters) {
        let (keyword, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        match keyword.to_ascii_uppercase().as_str() {
            "NOTIFY" => once(&mut dsn.notify, Notify::parse(value)?)?,
            "ORCPT" => once(&mut dsn.original, OriginalRecipient::parse(value)?)?,
            _ => return Err(CommandError::ParameterUnknown),
        }
    }
    Ok(Command::Rcpt { forward_path, dsn })
}

pub(crate) fn words(parameters: &str) -> impl Iterator<Item = &str> {
    parameters.split(' ').filter(|parameter| !parameter.is_empty())
}

pub(crate) fn once<T>(place: &mut Option<T>, value: T) -> Result<(), CommandError> {
    if place.replace(value).is_some() { Err(CommandError::ParameterTwice) } else { Ok(()) }
}

/// RFC 3030 section 2. A size that does not fit is larger than any limit.
fn bdat(argument: &str) -> Result<Command<'_>, CommandError> {
    let (bytes, last) = match argument.split_once(' ') {
        None => (argument, false),
        Some((bytes, last)) if last.trim_start_matches(' ').eq_ignore_ascii_case("LAST") => (bytes, true),
        Some(_) => return Err(CommandError::BdatSyntax),
    };
    let bytes = size(bytes).map_err(|_| CommandError::BdatSyntax)?;
    Ok(Command::Bdat { bytes, last })
}

/// RFC 1870: up to 20 digits. A number that does not fit is larger than any limit, not malformed.
fn size(digits: &str) -> Result<u64, CommandError> {
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(CommandError::ParameterSyntax);
    }
    Ok(digits.parse().unwrap_or(u64::MAX))
}

fn body_type(value: &str) -> Result<BodyType, CommandError> {
    match value.to_ascii_uppercase().as_str() {
        "7BIT" => Ok(BodyType::SevenBit),
        "8BITMIME" => Ok(BodyType::EightBitMime),
        "" => Err(CommandError::ParameterSyntax),
        _ => Err(CommandError::ParameterUnknown),
    }
}

/// Splits `FROM:<path> parameters` into path and parameters. A `>` inside quotes is part of the path. Spaces between
/// colon and `<` break the RFC, but many clients send one.
fn path<'l>(argument: &'l str, keyword: &str) -> Option<(&'l str, &'l str)> {
    let given = argument.get(..keyword.len()).filter(|given| given.eq_ignore_ascii_case(keyword))?;
    let path = argument.get(given.len()..)?.trim_start_matches(' ').strip_prefix('<')?;
    let (mut quoted, mut escaped) = (false, false);
    let end = path.bytes().position(|b| {
        let ends = b == b'>' && !quoted;
        quoted ^= b == b'"' && !escaped;
        escaped = quoted && b == b'\\' && !escaped;
        ends
    })?;
    let after = path.get(end + 1..)?;
    (after.is_empty() || after.starts_with(' ')).then_some((path.get(..end)?, after.trim_matches(' ')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn reverse_path(line: &str) -> Result<&str, CommandError> {
        match Command::parse(line.as_bytes())? {
            Command::Mail { reverse_path, .. } => Ok(reverse_path),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_bracket_inside_quotes_does_not_end_a_path() {
        for (line, expected) in [
            ("MAIL FROM:<a@b>", "a@b"),
            ("mail from: <a@b>  ", "a@b"),
            ("MAIL FROM:<>", ""),
            (r#"MAIL FROM:<"a> b"@c> SIZE=1"#, r#""a> b"@c"#),
            (r#"MAIL FROM:<"a\">b\\"@c>"#, r#""a\">b\\"@c"#),
        ] {
            assert_eq!(reverse_path(line), Ok(expected), "{line}");
        }
        for line in [
            "MAIL",
            "MAIL FROM",
            "MAIL FROM:",
            "MAIL FROM:a@b",
            "MAIL FROM :<a@b>",
            "MAIL TO:<a@b>",
            "MAIL FROM:<a@b",
            "MAIL FROM:<a@b>>",
            "MAIL FROM:<a@b>SIZE=1",
            r#"MAIL FROM:<"a@b>"#,
            "MAIL FROM:x<a@b>",
            "MAIL FROM:\"x\" <a@b>",
        ] {
            assert_eq!(reverse_path(line), Err(CommandError::MailSyntax), "{line}");
        }
    }

    #[test]
    fn a_size_is_read_whole_or_not_at_all() {
        let size = |parameters: &str| match Command::parse(format!("MAIL FROM:<> {parameters}").as_bytes())? {
            Command::Mail { size_bytes, .. } => Ok(size_bytes),
            other => panic!("{other:?}"),
        };
        assert_eq!(size("SIZE=0"), Ok(0));
        assert_eq!(size("size=123 body=8bitmime"), Ok(123));
        assert_eq!(size("SIZE=123 BODY=7BIT SIZE=456"), Ok(456));
        assert_eq!(size("SIZE=18446744073709551615"), Ok(u64::MAX));
        assert_eq!(size("SIZE=99999999999999999999999"), Ok(u64::MAX));
        for bad in ["SIZE", "SIZE=", "SIZE=-1", "SIZE=+1", "SIZE=1k", "SIZE=1=2", "BODY="] {
            assert_eq!(size(bad), Err(CommandError::ParameterSyntax), "{bad}");
        }
        for unknown in ["AUTH=<>", "BODY=BINARYMIME", "XYZ=1", "=1", "NOTIFY=NEVER"] {
            assert_eq!(size(unknown), Err(CommandError::ParameterUnknown), "{unknown}");
        }
    }

    #[test]
    fn a_name_that_could_forge_a_received_header_is_refused() {
        for bad in ["", "a b", "a(b", "a)", "x".repeat(256).as_str()] {
            assert_eq!(Command::parse(format!("EHLO {bad}").as_bytes()), Err(CommandError::HeloSyntax), "{bad}");
        }
        for bad in ["é", "a\tb", "a\0b", "a\x7f"] {
            assert_eq!(Command::parse(format!("HELO {bad}").as_bytes()), Err(CommandError::NotText), "{bad}");
        }
        for good in ["x", "[192.0.2.1]", "[IPv6:::1]", "my_host"] {
            assert_eq!(Command::parse(format!("ehlo  {good} ").as_bytes()), Ok(Command::Ehlo(good)));
        }
    }

    #[test]
    fn what_is_asked_of_notifications_is_read_whole_or_refused() {
        let parse = |line: &str| Command::parse(line.as_bytes()).map(|_| ());
        let Ok(Command::Mail { smtputf8, dsn, .. }) = Command::parse(b"MAIL FROM:<> ret=hdrs ENVID=QQ+2B1 SMTPUTF8")
        else {
            panic!()
        };
        assert_eq!((smtputf8, dsn.ret, dsn.envid.unwrap().as_str()), (true, Some(Ret::Headers), "QQ+2B1"));
        let line = "RCPT TO:<a@b> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;Bob@x";
        let Ok(Command::Rcpt { dsn, .. }) = Command::parse(line.as_bytes()) else { panic!() };
        assert_eq!(dsn.notify, Some(Notify::On { success: true, failure: false, delay: true }));
        assert_eq!(dsn.original.unwrap().as_str(), "rfc822;Bob@x");
        for (line, error) in [
            ("MAIL FROM:<> RET=ALL", DsnError("RET").into()),
            ("MAIL FROM:<> ENVID=a+0A", DsnError("ENVID").into()),
            ("MAIL FROM:<> RET=FULL RET=FULL", CommandError::ParameterTwice),
            ("MAIL FROM:<> SMTPUTF8=yes", CommandError::ParameterSyntax),
            ("RCPT TO:<a@b> NOTIFY=NEVER,DELAY", DsnError("NOTIFY").into()),
            ("RCPT TO:<a@b> NOTIFY", DsnError("NOTIFY").into()),
            ("RCPT TO:<a@b> ORCPT=rfc822", DsnError("ORCPT").into()),
            ("RCPT TO:<a@b> NOTIFY=NEVER NOTIFY=NEVER", CommandError::ParameterTwice),
            ("RCPT TO:<a@b> SIZE=1", CommandError::ParameterUnknown),
        ] {
            assert_eq!(parse(line), Err(error), "{line}");
        }
    }

    #[test]
    fn a_size_of_a_chunk_that_cannot_be_read_is_no_size() {
        let parse = |argument: &str| match Command::parse(format!("BDAT{argument}").as_bytes())? {
            Command::Bdat { bytes, last } => Ok((bytes, last)),
            other => panic!("{other:?}"),
        };
        for (argument, bytes, last) in [
            (" 0", 0, false),
            (" 10 LAST", 10, true),
            (" 7  last ", 7, true),
            (" 99999999999999999999999", u64::MAX, false),
        ] {
            assert_eq!(parse(argument), Ok((bytes, last)), "{argument}");
        }
        for bad in ["", " ", " LAST", " -1", " +1", " 1 FIRST", " 1 LAST LAST", " 1x", " 0x10"] {
            assert_eq!(parse(bad), Err(CommandError::BdatSyntax), "{bad}");
        }
        // Nor does anything else that begins so let its octets pass for commands.
        for bad in [&b"BDAT\t6"[..], b"bdat 6 \xff", b"BDAT 6\0", b"BDAT6", b"BDAT\xc3\xb6 6 LAST"] {
            assert_eq!(Command::parse(bad), Err(CommandError::BdatSyntax), "{}", bad.escape_ascii());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(
            verb in "(MAIL FROM:|RCPT TO:|EHLO |mail |)",
            rest in proptest::collection::vec(prop_oneof![any::<u8>(), proptest::sample::select(&b"<>\"\\@ =:"[..])], 0..60),
        ) {
            let line = [verb.as_bytes(), &rest].concat();
            if let Ok(Command::Rcpt { forward_path: path, .. } | Command::Mail { reverse_path: path, .. }) = Command::parse(&line) {
                prop_assert!(!path.bytes().any(|b| b.is_ascii_control()));
            }
        }

        #[test]
        fn a_path_is_found_again_whatever_it_quotes(inner in "[ -~]{0,20}") {
            let local = inner.replace('\\', "\\\\").replace('"', "\\\"");
            let line = format!("RCPT TO:<\"{local}\"@x.test>");
            let expected = format!("\"{local}\"@x.test");
            prop_assert_eq!(Command::parse(line.as_bytes()), Ok(Command::Rcpt { forward_path: &expected, dsn: RecipientDsn::default() }));
        }
    }
}
