//! One record of the delivery log as a line for people, its fields in the order of Postfix.
//!
//! Knows no file. Whatever a record holds, the line has no control character and nothing panics.

use jiff::tz::TimeZone;
use restante_envelope::text::is_harmless;
use serde_json::{Map, Value};
use std::fmt::Write as _;

/// The line for a record.
pub(crate) fn render(record: &Map<String, Value>, zone: &TimeZone) -> String {
    let record = Record(record);
    let mut line = String::new();
    for word in [local_time(record.text("ts"), zone), node(record.text("node"))] {
        if !word.is_empty() {
            line.push_str(&word);
            line.push(' ');
        }
    }
    line.push_str(&record.event());
    printable(&line)
}

/// The addresses of a list with commas between: one in a quoted local part is none.
pub(crate) fn addresses(list: &str) -> Vec<&str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let is_between = |c| {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = is_quoted,
            '"' => is_quoted = !is_quoted,
            _ => {}
        }
        c == ',' && !is_quoted
    };
    list.split(is_between).collect()
}

/// The text with `?` for whatever would steer a terminal or hide there.
pub(crate) fn printable(text: &str) -> String {
    text.chars().map(|c| if is_harmless(c) { c } else { '?' }).collect()
}

/// The instant in this zone; what is none, as it is.
pub(super) fn local_time(ts: &str, zone: &TimeZone) -> String {
    match ts.parse::<jiff::Timestamp>() {
        Ok(instant) => instant.to_zoned(zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%.3f%:z").to_string(),
        Err(_) => ts.to_owned(),
    }
}

/// Why, as the next hop, we, or an operator said it.
pub(super) fn reason(record: &Map<String, Value>) -> String {
    Record(record).why()
}

/// The first label of a name; an address as it is.
fn node(name: &str) -> String {
    let is_address = name.starts_with('[') || name.parse::<std::net::IpAddr>().is_ok();
    let label = if is_address { name } else { name.split('.').next().unwrap_or_default() };
    label.to_owned()
}

/// A number of seconds as Postfix writes it: two significant digits, none beyond a hundredth, no zeros behind.
fn seconds(s: f64) -> String {
    let decimals = if s >= 10.0 { 0 } else { 2 - usize::from(s >= 1.0) };
    let text = format!("{s:.decimals$}");
    if decimals == 0 { text } else { text.trim_end_matches('0').trim_end_matches('.').to_owned() }
}

struct Record<'a>(&'a Map<String, Value>);

impl Record<'_> {
    fn text(&self, key: &str) -> &str {
        self.0.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// The value in any shape; empty if it is not there.
    fn any(&self, key: &str) -> String {
        match self.0.get(key) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        }
    }

    fn has(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    fn event(&self) -> String {
        match self.text("ev") {
            "sent" | "deferred" | "quarantined" | "expired" | "replayed" => self.attempt(),
            "held" | "bounced" if !self.has("actor") => self.attempt(),
            "held" | "released" | "bounced" | "removed" | "undone" => self.operated(),
            "accepted" => self.accepted(),
            "rejected" => self.rejected(),
            "waiting" => {
                let mut fields = Fields::of(&self.id());
                fields.add("route", &self.any("route"));
                fields.status("waiting", &self.any("why"))
            }
            "connect" => {
                let mut fields = Fields::of(&format!("connect from [{}]", self.text("client_ip")));
                fields.add("sid", &self.any("sid"));
                fields.line
            }
            "disconnect" => self.disconnect(),
            event @ ("primary_up" | "primary_suspect" | "primary_down" | "primary_recovering") => self.primary(event),
            "log_gap" => format!("log gap: {}", self.any("why")),
            other => self.other(other),
        }
    }

    fn id(&self) -> String {
        let id = self.text("id");
        if id.is_empty() { String::new() } else { format!("{id}:") }
    }

    fn attempt(&self) -> String {
        let mut fields = Fields::of(&self.id());
        fields.bracketed("to", self.text("to"));
        let relay = match (self.text("relay_host"), self.text("relay_ip")) {
            ("", "") => "none".to_owned(),
            (host, ip) => format!("{host}[{ip}]:{}", self.any("relay_port")),
        };
        fields.add("relay", &relay);
        fields.add("delay", &self.0.get("delay_s").and_then(Value::as_f64).map(seconds).unwrap_or_default());
        let delays = self.0.get("delays").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let delays: Vec<_> = delays.iter().filter_map(Value::as_f64).map(seconds).collect();
        fields.add("delays", &delays.join("/"));
        fields.add("dsn", &self.dsn());
        fields.status(self.status(), &self.why())
    }

    fn status(&self) -> &str {
        match (self.text("status"), self.text("ev")) {
            ("", "held") | ("held", _) => "hold",
            ("", event) => event,
            (status, _) => status,
        }
    }

    /// As the next hop said it; else, as Postfix does, the class alone.
    fn dsn(&self) -> String {
        let said = self.any("dsn");
        if !said.is_empty() {
            return said;
        }
        let class = match (self.0.get("code").and_then(Value::as_u64), self.text("ev")) {
            (Some(code @ 200..600), _) => code / 100,
            (_, "sent") => 2,
            (_, "deferred") => 4,
            _ => 5,
        };
        format!("{class}.0.0")
    }

    fn why(&self) -> String {
        let why = [self.any("reply"), self.any("why"), self.any("reason")].into_iter().find(|text| !text.is_empty());
        why.unwrap_or_default()
    }

    fn operated(&self) -> String {
        let mut fields = Fields::of(&self.id());
        fields.bracketed("to", self.text("to"));
        fields.add("route", &self.any("route"));
        fields.add("actor", &self.any("actor"));
        fields.status(self.status(), &self.why())
    }

    fn accepted(&self) -> String {
        let mut fields = Fields::of(&self.id());
        fields.add("client", &format!("[{}]", self.text("client_ip")));
        fields.add("sid", &self.any("sid"));
        fields.bracketed("helo", self.text("helo"));
        fields.add("route", &self.any("route"));
        fields.bracketed("from", self.text("from"));
        fields.bracketed("to", &addresses(self.text("to")).join(">,<"));
        fields.add("size", &self.any("size"));
        fields.add("nrcpt", &self.any("nrcpt"));
        fields.status(self.status(), &self.why())
    }

    fn rejected(&self) -> String {
        let (stage, ip) = (self.text("stage").to_ascii_uppercase(), self.text("client_ip"));
        let mut line = format!("NOQUEUE: reject: {stage} from [{ip}]: {};", self.why());
        for key in ["from", "to", "helo"] {
            if self.has(key) {
                let _infallible = write!(line, " {key}=<{}>", self.text(key));
            }
        }
        line.trim_end_matches(';').to_owned()
    }

    fn disconnect(&self) -> String {
        let mut fields = Fields::of(&format!("disconnect from [{}]", self.text("client_ip")));
        for key in ["sid", "accepted", "refused", "size"] {
            fields.add(key, &self.any(key));
        }
        fields.because(&self.any("why"))
    }

    fn primary(&self, event: &str) -> String {
        let state = event.trim_start_matches("primary_");
        let mut line = format!("route {}: primary {state}", self.any("route"));
        if self.has("down_s") {
            let _infallible = write!(line, " after {} s", self.any("down_s"));
        }
        let why = self.why();
        if !why.is_empty() {
            let _infallible = write!(line, ": {why}");
        }
        line
    }

    /// An event of a later version: everything that is known of it.
    fn other(&self, event: &str) -> String {
        let mut fields = Fields::of(&format!("{}{}{event}", self.id(), if self.has("id") { " " } else { "" }));
        for key in self.0.keys().filter(|key| !["type", "ts", "node", "ev", "id"].contains(&key.as_str())) {
            fields.add(key, &self.any(key));
        }
        fields.line
    }
}

/// `head key=value, key=value`; what is not there is left out.
struct Fields {
    line: String,
    started: bool,
}

impl Fields {
    fn of(head: &str) -> Self {
        Self { line: head.to_owned(), started: false }
    }

    fn add(&mut self, key: &str, value: &str) {
        if value.is_empty() {
            return;
        }
        if self.started {
            self.line.push_str(", ");
        } else if !self.line.is_empty() {
            self.line.push_str(if self.line.ends_with(':') { " " } else { ", " });
        }
        self.started = true;
        let _infallible = write!(self.line, "{key}={value}");
    }

    /// An address, which may be the null reverse-path.
    fn bracketed(&mut self, key: &str, value: &str) {
        self.add(key, &format!("<{value}>"));
    }

    fn because(mut self, why: &str) -> String {
        if !why.is_empty() {
            let _infallible = write!(self.line, " ({why})");
        }
        self.line
    }

    fn status(mut self, status: &str, why: &str) -> String {
        self.add("status", status);
        self.because(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const ID: &str = "01JD9QK3T2E8V5W6X7Y8Z9ABCD";

    fn shown(mut record: Value) -> String {
        let object = record.as_object_mut().unwrap();
        object.insert("ts".into(), "2026-11-22T14:53:20.118Z".into());
        object.insert("node".into(), "mx2.example.net".into());
        render(object, &TimeZone::fixed(jiff::tz::offset(1)))
    }

    #[test]
    fn the_line_of_the_contract() {
        let record = json!({"type": "log", "ev": "sent", "id": ID, "to": "a@example.com", "from": "s@x.test", "size": 4,
            "relay_host": "mail.example.com", "relay_ip": "192.0.2.10", "relay_port": 25, "delay_s": 51179.82,
            "delays": [0.02, 51179.0, 0.1, 0.7], "dsn": "2.0.0", "status": "sent", "code": 250,
            "reply": "250 2.0.0 Ok: queued as 4XyZ"});
        assert_eq!(
            shown(record),
            "2026-11-22T15:53:20.118+01:00 mx2 01JD9QK3T2E8V5W6X7Y8Z9ABCD: to=<a@example.com>, \
             relay=mail.example.com[192.0.2.10]:25, delay=51180, delays=0.02/51179/0.1/0.7, dsn=2.0.0, status=sent \
             (250 2.0.0 Ok: queued as 4XyZ)"
        );
    }

    #[test]
    fn every_event_has_its_line() {
        let client = |mut record: Value| {
            record["client_ip"] = "192.0.2.1".into();
            record["sid"] = "2a".into();
            record
        };
        for (record, expected) in [
            (
                json!({"ev": "deferred", "id": ID, "to": "a@x.test", "delay_s": 0.1, "delays": [0, 0.1, 0, 0],
                    "status": "deferred", "why": "connection closed", "next_at": "2026-11-22T15:00:00.000Z"}),
                format!("{ID}: to=<a@x.test>, relay=none, delay=0.1, delays=0/0.1/0/0, dsn=4.0.0, status=deferred (connection closed)"),
            ),
            (
                json!({"ev": "held", "id": ID, "to": "a@x.test", "status": "hold", "code": 550, "reply": "550 no such user"}),
                format!("{ID}: to=<a@x.test>, relay=none, dsn=5.0.0, status=hold (550 no such user)"),
            ),
            (
                json!({"ev": "held", "id": ID, "to": "a@x.test", "route": "office", "status": "held", "actor": "root", "reason": "virus"}),
                format!("{ID}: to=<a@x.test>, route=office, actor=root, status=hold (virus)"),
            ),
            (
                json!({"ev": "bounced", "id": ID, "to": "a@x.test", "status": "bounced", "actor": "root", "reason": "spam"}),
                format!("{ID}: to=<a@x.test>, actor=root, status=bounced (spam)"),
            ),
            (
                json!({"ev": "released", "id": ID, "to": "a@x.test", "route": "office", "status": "released", "actor": "root", "reason": "ok"}),
                format!("{ID}: to=<a@x.test>, route=office, actor=root, status=released (ok)"),
            ),
            (
                client(json!({"ev": "accepted", "id": ID, "helo": "c.test", "route": "office", "from": "",
                    "to": "a@x.test,b@x.test", "size": 1234, "nrcpt": 2, "status": "accepted"})),
                format!("{ID}: client=[192.0.2.1], sid=2a, helo=<c.test>, route=office, from=<>, to=<a@x.test>,<b@x.test>, size=1234, nrcpt=2, status=accepted"),
            ),
            (
                json!({"ev": "accepted", "id": ID, "to": "\"x, \\\",boss@x.test, y\"@x.test,b@x.test", "nrcpt": 2}),
                format!("{ID}: client=[], helo=<>, from=<>, to=<\"x, \\\",boss@x.test, y\"@x.test>,<b@x.test>, nrcpt=2, status=accepted"),
            ),
            (
                client(json!({"ev": "rejected", "stage": "rcpt", "reply": "550 5.7.1 relaying denied", "from": "",
                    "to": "a@y.test", "helo": "c.test"})),
                "NOQUEUE: reject: RCPT from [192.0.2.1]: 550 5.7.1 relaying denied; from=<> to=<a@y.test> helo=<c.test>".into(),
            ),
            (
                client(json!({"ev": "rejected", "stage": "connect", "reply": "421 4.7.0 too many"})),
                "NOQUEUE: reject: CONNECT from [192.0.2.1]: 421 4.7.0 too many".into(),
            ),
            (client(json!({"ev": "connect"})), "connect from [192.0.2.1], sid=2a".into()),
            (
                client(json!({"ev": "disconnect", "accepted": 2, "refused": 0, "size": 99, "why": "timed out"})),
                "disconnect from [192.0.2.1], sid=2a, accepted=2, refused=0, size=99 (timed out)".into(),
            ),
            (json!({"ev": "waiting", "id": ID, "route": "office", "why": "primary down"}), format!("{ID}: route=office, status=waiting (primary down)")),
            (json!({"ev": "primary_down", "route": "office", "why": "connection refused"}), "route office: primary down: connection refused".into()),
            (json!({"ev": "primary_up", "route": "office", "down_s": 3600}), "route office: primary up after 3600 s".into()),
            (json!({"ev": "log_gap", "why": "3 records could not be written"}), "log gap: 3 records could not be written".into()),
            (json!({"ev": "recovered", "status": "torn", "pending": 12}), "recovered, status=torn, pending=12".into()),
            (
                json!({"ev": "replayed", "id": ID, "to": "a@x.test", "status": "replayed", "code": 250, "dsn": "2.0.0",
                    "reply": "250 2.0.0 Ok"}),
                format!("{ID}: to=<a@x.test>, relay=none, dsn=2.0.0, status=replayed (250 2.0.0 Ok)"),
            ),
            (json!({"ev": "of_tomorrow", "id": ID, "to": "a@x.test", "odd": [1]}), format!("{ID}: of_tomorrow, to=a@x.test, odd=[1]")),
        ] {
            assert_eq!(shown(record), format!("2026-11-22T15:53:20.118+01:00 mx2 {expected}"));
        }
    }

    #[test]
    fn numbers_are_written_as_postfix_writes_them() {
        for (s, text) in [
            (0.0, "0"),
            (0.004, "0"),
            (0.02, "0.02"),
            (0.1, "0.1"),
            (0.996, "1"),
            (1.0, "1"),
            (1.44, "1.4"),
            (9.96, "10"),
            (12.3, "12"),
            (100.0, "100"),
            (51179.82, "51180"),
        ] {
            assert_eq!(seconds(s), text, "{s}");
        }
    }

    #[test]
    fn a_broken_record_is_shown_as_far_as_it_goes() {
        let record = json!({"ts": "yesterday", "node": "192.0.2.7", "ev": 7, "to": {"a": 1}});
        assert_eq!(render(record.as_object().unwrap(), &TimeZone::UTC), "yesterday 192.0.2.7 to={\"a\":1}");
        let record = json!({"ev": "sent", "delay_s": "x", "delays": ["y", 1.5], "relay_port": null});
        assert_eq!(
            render(record.as_object().unwrap(), &TimeZone::UTC),
            "to=<>, relay=none, delays=1.5, dsn=2.0.0, status=sent"
        );
    }

    proptest! {
        #[test]
        fn no_record_reaches_the_terminal_with_control_characters(
            ev in prop_oneof![Just("sent"), Just("held"), Just("accepted"), Just("rejected"), Just("connect"),
                Just("disconnect"), Just("waiting"), Just("primary_down"), Just("log_gap"), Just("what")],
            values in proptest::collection::btree_map("[a-z_]{1,10}", any::<String>(), 0..6),
            known in any::<[String; 6]>(), number in any::<f64>(),
        ) {
            let mut record: Map<String, Value> = values.into_iter().map(|(k, v)| (k, v.into())).collect();
            for (key, value) in ["ts", "node", "id", "to", "reply", "route"].into_iter().zip(known) {
                record.insert(key.into(), value.into());
            }
            record.insert("ev".into(), ev.into());
            record.insert("delay_s".into(), json!(number));
            let line = render(&record, &TimeZone::UTC);
            prop_assert!(line.chars().all(is_harmless), "{line:?}");
        }
    }
}
