//! Every kind of error of flags and file, by what the operator sees.

mod routes;

use super::*;
use proptest::prelude::*;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// A directory with a `restante.toml` and other files.
struct Place(TempDir);

impl Place {
    fn with(toml: &str) -> Self {
        Self(tempfile::tempdir().unwrap()).and("restante.toml", toml)
    }

    fn and(self, name: &str, text: &str) -> Self {
        fs::create_dir_all(self.0.path().join(name).parent().unwrap()).unwrap();
        fs::write(self.0.path().join(name), text).unwrap();
        self
    }

    fn around(&self) -> Surroundings {
        Surroundings { usual_places: vec![self.0.path().join("restante.toml")], hostname: Some("box".into()) }
    }

    fn resolve(&self, flags: &Flags) -> Result<Config, Invalid> {
        resolve_in(flags, &self.around())
    }

    /// What is printed, with the directory's name taken out, and the exit code.
    fn refusal(&self, flags: &Flags) -> (String, u8) {
        let invalid = self.resolve(flags).unwrap_err();
        (invalid.render(false).replace(&format!("{}/", self.0.path().display()), ""), invalid.exit_code())
    }
}

fn routes(texts: &[&str]) -> Flags {
    Flags { routes: texts.iter().map(|text| (*text).to_owned()).collect(), ..Flags::default() }
}

/// The one error of a file that is otherwise right: its message, its place and its help.
fn only_error(toml: &str) -> String {
    let (shown, code) = Place::with(toml).refusal(&Flags::default());
    assert_eq!(code, 6);
    assert!(shown.ends_with("\n1 error; nothing was started, no port is open\n"), "{shown}");
    shown.lines().filter(|line| !line.starts_with("1 error")).map(|line| format!("{}\n", line.trim_end())).collect()
}

const ROUTE: &str = "[[route]]\nname = \"office\"\ndomains = [\"example.com\"]\nprimary = [\"mail.example.com\"]\n";

/// Checks the one error of a file with a good hostname and a good route.
fn assert_error(section: &str, message: &str, place: &str, help: &str) {
    let shown = only_error(&format!("hostname = \"mx2.example.net\"\n{section}\n{ROUTE}"));
    let lines: Vec<_> = shown.lines().collect();
    assert_eq!(lines[0], format!("error: {message}"), "{shown}");
    assert_eq!(lines[1], format!("  --> restante.toml:{place}"), "{shown}");
    assert!(lines[3].ends_with(&format!("^ {help}")), "{shown}");
}

#[test]
fn ten_errors_are_shown_in_one_run() {
    let place = Place::with(
        r#"hostnme = "mx2.example.net"
[journal]
retain = 7
[smtp]
listen = ["25"]
max_message_size = "100"
[cluster]
cert = "x"
[[route]]
domain = ["example.com"]
primary = []
[[route]]
name = "b"
domains = ["b.test", "*"]
primary = ["mail.b.test:0"]
recipients = ["file:absent"]
"#,
    );
    let (shown, code) = place.refusal(&Flags { hostname: Some("mx2.example.net".into()), ..Flags::default() });
    let expected = r#"error: unknown key `hostnme` at the top level
  --> restante.toml:1:1
  1 | hostnme = "mx2.example.net"
    | ^^^^^^^ did you mean `hostname`?
error: `retain` is a whole number, and must be a string
  --> restante.toml:3:10
  3 | retain = 7
    |          ^ such as "7d"
error: bad address in `listen`
  --> restante.toml:5:11
  5 | listen = ["25"]
    |           ^^^^ an address to listen on is IP:PORT, such as "0.0.0.0:25" or "[::]:25"
error: bad `max_message_size`
  --> restante.toml:6:20
  6 | max_message_size = "100"
    |                    ^^^^^ a unit is missing: "100KiB" or "100MiB"?
error: section [cluster] is reserved for a later release
  --> restante.toml:7:2
  7 | [cluster]
    |  ^^^^^^^ remove it
error: unknown key `domain` in [[route]]
  --> restante.toml:10:1
  10 | domain = ["example.com"]
     | ^^^^^^ did you mean `domains`?
error: `primary` is empty
  --> restante.toml:11:11
  11 | primary = []
     |           ^^ name the primary, or leave it out to follow MX
error: bad domain
  --> restante.toml:14:22
  14 | domains = ["b.test", "*"]
     |                      ^^^ `*` would take mail for everybody: name the domains
error: bad address in `primary`
  --> restante.toml:15:12
  15 | primary = ["mail.b.test:0"]
     |            ^^^^^^^^^^^^^^^ a port is a number from 1 to 65535
error: cannot read the recipients file absent
  --> restante.toml:16:15
  16 | recipients = ["file:absent"]
     |               ^^^^^^^^^^^^^ No such file or directory (os error 2)
10 errors; nothing was started, no port is open
"#;
    assert_eq!(shown, expected);
    assert_eq!(code, 6);
}

#[test]
fn the_common_file_is_read_as_it_is_meant() {
    let place = Place::with(
        r##"hostname = "MX2.example.net"
[journal]
dir = "spool"
retain = "12h"
[smtp]
listen = ["[::]:25", "127.0.0.1:2525"]
max_message_size = "50MB"
[admin]
http = "127.0.0.1:8025"
[limits]
max_connections = 4_000
exempt = []
[[route]]
name = "office"
domains = ["Example.com", "example.org"]
primary = ["mail.example.com:25", "[2001:db8::1]"]
recipients = ["info@example.com", "file:recipients"]
[[route]]
domains = ["other.test"]
primary = ["192.0.2.1"]
"##,
    )
    .and("recipients", "# ours\n\n  Sales@Example.org  # the shop\r\na#b@example.com\n");
    let config = place.resolve(&Flags::default()).unwrap();
    assert_eq!(config.hostname, "mx2.example.net");
    assert_eq!(config.data_dir, place.0.path().join("spool"));
    assert_eq!(config.retain, Duration::from_secs(43_200));
    assert_eq!(config.listen, ["[::]:25".parse().unwrap(), "127.0.0.1:2525".parse().unwrap()]);
    assert_eq!((config.max_message_bytes, config.admin_http), (50_000_000, "127.0.0.1:8025".parse().ok()));
    let floor = Floor::default();
    assert_eq!(config.limits, Limits { max_connections: 4_000, exempt: Vec::new(), floor, ..Limits::default() });
    let [office, other] = &config.routes[..] else { panic!("{:?}", config.routes) };
    assert_eq!(office.domains.iter().map(ToString::to_string).collect::<Vec<_>>(), ["example.com", "example.org"]);
    assert_eq!(
        office.primary.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["mail.example.com:25", "[2001:db8::1]:25"]
    );
    let recipients = ["info@example.com", "Sales@Example.org", "a#b@example.com"];
    assert_eq!(office.recipients.as_deref(), Some(&recipients.map(str::to_owned)[..]));
    assert_eq!((other.name.as_str(), &other.recipients), ("other.test", &None));
}

#[test]
fn flags_alone_read_no_file() {
    let place = Place::with("this would be an error");
    let config = place.resolve(&routes(&["a.test,b.test=127.0.0.1:2526,[::1]", "c.test=mail.c.test"])).unwrap();
    assert_eq!((config.hostname.as_str(), config.data_dir.as_path()), ("box", Path::new("./restante-data")));
    assert_eq!(config.listen, ["127.0.0.1:2525".parse().unwrap()]);
    assert_eq!((config.admin_http, config.max_message_bytes), (None, 104_857_600));
    assert_eq!(config.limits.max_connections, 2_500);
    assert!(config.limits.exempt.iter().any(|network| network.contains(Ipv4Addr::LOCALHOST.into())));
    assert!(config.limits.exempt.iter().any(|network| network.contains(Ipv6Addr::LOCALHOST.into())));
    let names: Vec<_> = config.routes.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(names, ["a.test", "c.test"]);
    assert_eq!(config.routes[0].primary[1].to_string(), "[::1]:25");
    let nameless = Surroundings { usual_places: Vec::new(), hostname: None };
    assert_eq!(resolve_in(&routes(&["a.test=h"]), &nameless).unwrap().hostname, "localhost");
}

#[test]
fn flags_win_over_the_file_and_routes_replace_routes() {
    let place = Place::with(&format!("hostname = \"mx2.example.net\"\n[admin]\nhttp = \"127.0.0.1:1\"\n{ROUTE}"));
    let flags = Flags {
        config: Some(place.0.path().join("restante.toml")),
        listen: vec!["127.0.0.1:0".into(), "127.0.0.1:0".into()],
        data: Some("d".into()),
        admin: Some("127.0.0.1:2".into()),
        hostname: Some("other.example".into()),
        ..routes(&["new.test=h"])
    };
    let config = place.resolve(&flags).unwrap();
    assert_eq!((config.hostname.as_str(), config.data_dir.as_path()), ("other.example", Path::new("d")));
    assert_eq!((config.listen.len(), config.admin_http), (2, "127.0.0.1:2".parse().ok()));
    assert_eq!(config.routes.iter().map(|route| route.name.as_str()).collect::<Vec<_>>(), ["new.test"]);
    let kept = place.resolve(&Flags { routes: Vec::new(), ..flags }).unwrap();
    assert_eq!(kept.routes[0].name, "office");
}

#[test]
fn all_errors_of_the_command_line_are_shown_together() {
    let place = Place::with("this would be an error too");
    let flags = Flags {
        listen: vec!["25".into()],
        admin: Some("localhost:1".into()),
        hostname: Some("two words".into()),
        ..routes(&[
            "x",
            "a.test=",
            "*=h",
            "=h",
            "a.test=h",
            "b.test,A.test=h",
            "c.test=::1",
            "*.com=h",
            "*.e.test=h",
            "e.test=h",
            "192.0.2.1=h",
        ])
    };
    let (shown, code) = place.refusal(&flags);
    let expected = "\
error: --route `x`: a route is DOMAIN[,DOMAIN...]=HOST[:PORT][,HOST[:PORT]...]
error: --route `a.test=`: a host is missing: HOST or HOST:PORT, such as mail.example.com:25
error: --route `*=h`: `*` would take mail for everybody: name the domains
error: --route `=h`: a domain is missing
error: --route `b.test,A.test=h`: the domain a.test is there twice
error: --route `c.test=::1`: an IPv6 address stands in brackets, such as [2001:db8::1]:25
error: --route `*.com=h`: `*.com` would take mail for a whole top-level domain: name the domains below it
error: --route `e.test=h`: another route has the name e.test: begin with another domain, or name both in a file
error: --route `192.0.2.1=h`: `192.0.2.1` is an address, not a domain
error: --listen `25`: an address to listen on is IP:PORT, such as \"0.0.0.0:25\" or \"[::]:25\"
error: --admin `localhost:1`: an address to listen on is IP:PORT, such as \"0.0.0.0:25\" or \"[::]:25\"
error: --hostname `two words`: this is not a host name, such as mx2.example.net
12 errors; nothing was started, no port is open
";
    assert_eq!((shown.as_str(), code), (expected, 2));
}

#[test]
fn a_loop_or_a_port_asked_for_twice_by_flags_is_a_usage_error() {
    let place = Place::with("");
    let (shown, code) = place.refusal(&routes(&["a.test=127.0.0.1:2525"]));
    assert!(shown.starts_with("error: --route: the primary 127.0.0.1:2525 is ourselves: we listen on 127.0.0.1:2525"));
    assert_eq!(code, 2);
    let (shown, code) = place.refusal(&Flags { admin: Some("127.0.0.1:2525".into()), ..routes(&["a.test=h"]) });
    assert!(shown.starts_with("error: --listen, --admin: 127.0.0.1:2525 is there twice"), "{shown}");
    assert_eq!(code, 2);
}

#[test]
fn without_file_and_routes_the_way_on_is_shown() {
    let nowhere = Surroundings { usual_places: vec!["/nonexistent/restante.toml".into()], hostname: None };
    let invalid = resolve_in(&Flags::default(), &nowhere).unwrap_err();
    let expected = "\
error: no configuration: no --config, no --route, and no /nonexistent/restante.toml
  without a file:  restante serve --route example.com=mail.example.com
  with one:        restante init mx2.example.net --domain example.com --primary mail.example.com
nothing was started, no port is open
";
    assert_eq!((invalid.render(false).as_str(), invalid.exit_code()), (expected, 6));
}

#[test]
fn a_file_that_cannot_be_read_is_not_passed_over() {
    let place = Place::with("");
    let absent = Flags { config: Some("/nonexistent/x.toml".into()), ..routes(&["a.test=h"]) };
    let (shown, code) = place.refusal(&absent);
    assert!(shown.starts_with("error: cannot read /nonexistent/x.toml: No such file"), "{shown}");
    assert_eq!(code, 6);
    fs::remove_file(place.0.path().join("restante.toml")).unwrap();
    fs::create_dir(place.0.path().join("restante.toml")).unwrap();
    assert!(matches!(place.resolve(&Flags::default()), Err(Invalid::Unreadable { .. })));
    let too_large = Place::with(&"#\n".repeat(3 << 20));
    assert!(too_large.refusal(&Flags::default()).0.contains("larger than 4194304 bytes"));
}

#[test]
fn the_data_directory_is_found_without_a_daemon() {
    let place = Place::with(&format!("hostname = \"mx2.example.net\"\n[journal]\ndir = \"/j\"\n{ROUTE}"));
    let config = Some(place.0.path().join("restante.toml"));
    assert_eq!(data_dir(&Flags { config: config.clone(), ..Flags::default() }), Ok("/j".into()));
    assert_eq!(data_dir(&Flags { config, data: Some("d".into()), ..Flags::default() }), Ok("d".into()));
    let broken = Place::with("x");
    assert!(data_dir(&Flags { config: Some(broken.0.path().join("restante.toml")), ..Flags::default() }).is_err());
}

#[test]
fn a_host_name_is_needed_where_the_machine_has_none() {
    assert!(only_error(ROUTE).starts_with("error: missing `hostname`\n  --> restante.toml:1:1\n"));
    assert!(only_error(&format!("hostname = \"192.0.2.1\"\n{ROUTE}")).contains("this is not a host name"));
    let place = Place::with(ROUTE);
    let named = Surroundings { hostname: Some("mx2.example.net".into()), ..place.around() };
    assert_eq!(resolve_in(&Flags::default(), &named).unwrap().hostname, "mx2.example.net");
}

#[test]
fn one_misspelt_key_is_one_error() {
    let expected = "\
error: unknown key `domain` in [[route]]
  --> restante.toml:3:1
  3 | domain = [\"example.com\"]
    | ^^^^^^ did you mean `domains`?
";
    let toml = "hostname = \"mx2.example.net\"\n[[route]]\ndomain = [\"example.com\"]\nprimary = [\"h\"]\n";
    assert_eq!(only_error(toml), expected);
    assert!(only_error(&format!("hostnam = \"mx2.example.net\"\n{ROUTE}")).contains("did you mean `hostname`?"));
    assert!(only_error("hostname = \"a.test\"\n[[routes]]\nname = \"x\"\n").contains("did you mean `route`?"));
}

#[test]
fn unknown_and_reserved_names_are_told_apart() {
    assert_error("[smpt]", "unknown section [smpt]", "2:2", "did you mean `smtp`?");
    assert_error(
        "[spool]",
        "unknown section [spool]",
        "2:2",
        "known here: hostname, journal, smtp, tls, admin, limits, log, dns, route",
    );
    assert_error(
        "[smtp]\nport = 25",
        "unknown key `port` in [smtp]",
        "3:1",
        "known here: listen, max_message_size, bare_line_ends, proxy, xclient",
    );
    assert_error("[journal]\nretian = \"7d\"", "unknown key `retian` in [journal]", "3:1", "did you mean `retain`?");
    assert_error("[admin]\nhtp = \"x\"", "unknown key `htp` in [admin]", "3:1", "did you mean `http`?");
    assert_error("[limits]\nexempts = []", "unknown key `exempts` in [limits]", "3:1", "did you mean `exempt`?");
    for name in ["metrics", "status", "notify", "cluster"] {
        let message = format!("section [{name}] is reserved for a later release");
        assert_error(&format!("[{name}]\nx = 1"), &message, "2:2", "remove it");
    }
    let (good, reserved) = ROUTE.split_at("[[route]]\n".len());
    assert_eq!(good, "[[route]]\n");
    for key in ["accept", "retry", "probe", "tls", "hold", "maintenance", "notify", "xclient", "bounce"] {
        let message = format!("key `{key}` in [[route]] is reserved for a later release");
        routes::assert_route_error(&format!("{reserved}{key} = 1"), &message, "6:1", "remove it");
    }
}

#[test]
fn values_of_the_wrong_type_are_told_the_right_one() {
    assert_error(
        "journal = 1",
        "`journal` is a whole number, and must be a section",
        "2:11",
        "write [journal] on a line of its own",
    );
    assert_error(
        "[journal]\ndir = true",
        "`dir` is a boolean, and must be a string",
        "3:7",
        "such as \"/var/lib/restante\"",
    );
    assert_error(
        "[smtp]\nmax_message_size = 100",
        "`max_message_size` is a whole number, and must be a string",
        "3:20",
        "such as \"100MiB\"",
    );
    assert_error(
        "[smtp]\nlisten = \"[::]:25\"",
        "`listen` is a string, and must be a list of strings",
        "3:10",
        "such as [\"[::]:25\"]",
    );
    assert_error(
        "[smtp]\nlisten = [25]",
        "an element of `listen` is a whole number, and must be a string",
        "3:11",
        "such as \"[::]:25\"",
    );
    assert_error(
        "[limits]\nmax_connections = \"9\"",
        "`max_connections` is a string, and must be a whole number",
        "3:19",
        "such as 1000",
    );
    let tail = "[route]\ndomains = [\"a.test\"]";
    assert!(
        only_error(&format!("hostname = \"a.test\"\n{tail}"))
            .contains("each route starts with a line [[route]], in two brackets")
    );
}

#[test]
fn values_out_of_bounds_are_told_the_bounds() {
    assert_error(
        "[journal]\nretain = \"1w\"",
        "bad `retain`",
        "3:10",
        "a duration is a whole number with s, m, h or d, such as \"12h\" or \"7d\"",
    );
    assert_error("[journal]\ndir = \"\"", "bad `dir`", "3:7", "name a directory, such as \"/var/lib/restante\"");
    for size in ["1KB", "2GiB"] {
        let section = format!("[smtp]\nmax_message_size = \"{size}\"");
        assert_error(&section, "bad `max_message_size`", "3:20", "from \"1KiB\" to \"1GiB\"");
    }
    assert_error("[limits]\nmax_connections = 0", "bad `max_connections`", "3:19", "1 to 100000");
    assert_error("[limits]\nper_client_connections = -1", "bad `per_client_connections`", "3:26", "1 to 100000");
    assert_error("[limits]\nexempt = [\"10.0.0.0/33\"]", "bad address in `exempt`", "3:11", "a prefix of at most /32");
    assert_error(
        "[smtp]\nlisten = []",
        "`listen` is empty",
        "3:10",
        "nobody could reach us: name an address, such as \"[::]:25\"",
    );
    assert_error("[smtp]\nlisten = [\"[::]:25\", \"[::]:25\"]", "[::]:25 is there twice", "3:22", "remove one");
    assert_error("[admin]\nhttp = \"[::]:25\"", "bad `http`", "3:8", "SMTP listens there already");
    assert_error(
        "[admin]\nhttp = \"8025\"",
        "bad `http`",
        "3:8",
        "an address to listen on is IP:PORT, such as \"0.0.0.0:25\" or \"[::]:25\"",
    );
}

#[test]
fn syntax_errors_do_not_hide_other_errors_nor_invent_any() {
    let place = Place::with("hostname = mx2.example.net\n[smtp]\nlisten = [\"x\"]\n[journal]\nretain \"7d\"\n");
    let (shown, _) = place.refusal(&Flags::default());
    let messages: Vec<_> = shown.lines().filter(|line| line.starts_with("error") || line.contains("-->")).collect();
    assert_eq!(
        messages,
        [
            "error: this is not TOML",
            "  --> restante.toml:1:12",
            "error: bad address in `listen`",
            "  --> restante.toml:3:11",
            "error: this is not TOML",
            "  --> restante.toml:5:8",
        ],
        "{shown}"
    );
}

#[test]
fn one_missing_bracket_is_one_error() {
    let toml = "hostname = \"a.test\"\n[[route]]\ndomains = [\"a.test\"\nprimary = [\"h\"]\n[[route]]\nname = \"b\"\ndomains = [\"b.test\"]\n";
    let shown = only_error(toml);
    assert!(shown.starts_with("error: this is not TOML\n  --> restante.toml:4:1\n"), "{shown}");
    assert!(shown.ends_with("^ a `]` is missing before this\n"), "{shown}");
}

#[test]
fn a_key_that_is_there_twice_is_an_error() {
    assert_error("[journal]\nretain = \"7d\"\nretain = \"8d\"", "this is not TOML", "4:1", "duplicate key");
}

#[test]
fn the_shipped_file_loads_and_its_comments_tell_the_defaults() {
    let shipped = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/restante.toml")).unwrap();
    let config = Place::with(&shipped).resolve(&Flags::default()).unwrap();
    assert_eq!(config.data_dir, Path::new("/var/lib/restante"));

    // `#key = value` is a key that may be had by removing the `#`; prose is `# ...`.
    let uncommented: String = shipped
        .lines()
        .map(|line| {
            line.strip_prefix('#').filter(|rest| rest.starts_with(|c: char| !c.is_whitespace())).unwrap_or(line)
        })
        .flat_map(|line| [line, "\n"])
        .collect();
    let place = Place::with(&uncommented)
        .and("recipients", "sales@example.org\n")
        .and("tls/fullchain.pem", CHAIN)
        .and("tls/key.pem", KEY);
    let all = place.resolve(&Flags::default()).unwrap();
    // The default is a rule and no figure: the file shows an example.
    assert_eq!(all.limits.floor, Floor { bytes: Some(1 << 30), percent: Some(5) });
    assert_eq!(all.routes[0].quota, Some(Quota::Bytes(10 << 30)));
    let settable = |config: &Config| {
        let Config { retain, listen, max_message_bytes, bare_line_ends, mut limits, log, .. } = config.clone();
        limits.floor = Floor::default();
        (retain, listen, max_message_bytes, bare_line_ends, limits, log)
    };
    assert_eq!(settable(&all), settable(&config));
    for key in [
        "retain",
        "listen",
        "max_message_size",
        "bare_line_ends",
        "http",
        "max_connections",
        "per_client_connections",
        "exempt",
        "min_free",
        "min_free_percent",
        "quota",
        "recipients",
        "certificate",
        "key",
        "max_size",
        "keep",
    ] {
        assert!(
            uncommented.lines().any(|line| line.starts_with(&format!("{key} = "))),
            "{key} is not in the shipped file"
        );
    }
    assert!(all.admin_http.is_some() && all.certificate.is_some() && all.routes[0].recipients.is_some());
}

const CHAIN: &str = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n";
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----\n";

#[test]
fn half_a_certificate_or_one_that_cannot_be_used_is_an_error() {
    let tls = |keys: &str| format!("hostname = \"mx2.example.net\"\n[tls]\n{keys}\n{ROUTE}");
    let both = "certificate = \"c.pem\"\nkey = \"k.pem\"";
    let place = Place::with(&tls(both)).and("c.pem", CHAIN).and("k.pem", KEY);
    assert_eq!(Place::with(&tls("")).resolve(&Flags::default()).unwrap().certificate, None);
    let found = place.resolve(&Flags::default()).unwrap().certificate.unwrap();
    assert_eq!((found.chain, found.key), (place.0.path().join("c.pem"), place.0.path().join("k.pem")));
    for (keys, messages) in [
        ("certificate = \"c.pem\"", vec!["missing `key`"]),
        ("certificat = \"c.pem\"\nkey = \"k.pem\"", vec!["unknown key `certificat` in [tls]"]),
        (
            "certificate = \"k.pem\"\nkey = \"c.pem\"",
            vec![
                "k.pem has no line `-----BEGIN ... CERTIFICATE-----`",
                "c.pem has no line `-----BEGIN ... PRIVATE KEY-----`",
            ],
        ),
        ("certificate = \"absent\"\nkey = \"k.pem\"", vec!["cannot read absent: No such file or directory"]),
    ] {
        let place = Place::with(&tls(keys)).and("c.pem", CHAIN).and("k.pem", KEY);
        let (shown, code) = place.refusal(&Flags::default());
        assert_eq!((code, shown.matches("error: ").count()), (6, messages.len()), "{shown}");
        messages.iter().for_each(|message| assert!(shown.contains(message), "{message}\n{shown}"));
    }
}

#[test]
fn the_log_s_bounds_are_told() {
    assert_error("[log]\nmax_size = \"1MiB\"", "bad `max_size`", "3:12", "at least \"128MiB\"");
    assert_error("[log]\nkeep = \"12h\"", "bad `keep`", "3:8", "at least \"1d\": a file of the log is a day's");
    let place = Place::with(&format!("hostname = \"a.test\"\n[log]\nmax_size = \"1GiB\"\nkeep = \"7d\"\n{ROUTE}"));
    let log = place.resolve(&Flags::default()).unwrap().log;
    assert_eq!(log, LogSettings { max_bytes: 1 << 30, keep: Duration::from_secs(7 * 86_400) });
}

proptest! {
    #[test]
    fn no_file_can_make_the_check_panic(
        lines in prop::collection::vec("\\[\\[route\\]\\]|\\[[a-z]{1,7}\\]|(name|domains|primary|recipients|listen|retain|x) = (\\[?\"[a-z*@.:0-9]{0,9}\"\\]?|[0-9]{1,3}|\\[)|\\PC{0,20}", 0..12),
    ) {
        let text = lines.join("\n");
        let around = Surroundings { usual_places: Vec::new(), hostname: None };
        let given = flags::check(&Flags::default()).unwrap();
        if let Err(invalid) = file::check(Path::new("t"), &text, &given, &around) {
            let shown = invalid.render(false);
            prop_assert!(shown.contains("error: ") && !shown.starts_with("0 errors"), "{shown}");
        }
    }

    #[test]
    fn no_flag_can_make_the_check_panic(route in "\\PC{0,30}|[a-z*.,]{0,9}=[a-z0-9.:,\\[\\]]{0,20}", listen in "\\PC{0,20}") {
        let flags = Flags { listen: vec![listen], ..routes(&[&route]) };
        let _ = resolve_in(&flags, &Surroundings { usual_places: Vec::new(), hostname: None });
    }
}

#[test]
fn a_file_that_is_no_text_says_which_line() {
    let place = Place::with("");
    fs::write(place.0.path().join("restante.toml"), b"a\nb\n\xffc\n").unwrap();
    assert!(place.refusal(&Flags::default()).0.contains("line 3 is not UTF-8 text"));
}
