//! What is wrong with a `[[route]]`, by what the operator sees.

use super::*;

/// Checks the one error of a file whose route consists of these lines; the first of them is line 3.
pub(super) fn assert_route_error(lines: &str, message: &str, place: &str, help: &str) {
    let shown = only_error(&format!("hostname = \"mx2.example.net\"\n[[route]]\n{lines}\n"));
    let shown_lines: Vec<_> = shown.lines().collect();
    assert_eq!(shown_lines[0], format!("error: {message}"), "{shown}");
    assert_eq!(shown_lines[1], format!("  --> restante.toml:{place}"), "{shown}");
    assert!(shown_lines[3].ends_with(&format!("^ {help}")), "{shown}");
}

#[test]
fn a_route_that_would_relay_for_anybody_or_in_circles_is_refused() {
    let primary = "primary = [\"mail.example.com\"]";
    let route = |domains: &str| format!("domains = {domains}\n{primary}");
    assert_route_error(&route("[\"*\"]"), "bad domain", "3:12", "`*` would take mail for everybody: name the domains");
    assert_route_error(
        &route("[\"*.com\"]"),
        "bad domain",
        "3:12",
        "`*.com` would take mail for a whole top-level domain: name the domains below it",
    );
    assert_route_error(
        &route("[\"*.a.test\", \"a.*.test\"]"),
        "bad domain",
        "3:24",
        "`a.*.test` is no pattern: a star stands alone in front, such as *.example.com",
    );
    assert_route_error(
        &route("[\"*.a.test\", \"a.test\", \"*.A.test\"]"),
        "the domain *.a.test is there twice",
        "3:34",
        "first on line 3",
    );
    assert_route_error(&route("[\"a_b.-c\"]"), "bad domain", "3:12", "`a_b.-c` is not a domain name");
    assert_route_error(&route("[\"192.0.2.1\"]"), "bad domain", "3:12", "`192.0.2.1` is an address, not a domain");
    assert_route_error(&route("[\"\"]"), "bad domain", "3:12", "a domain is missing");
    assert_route_error(&route("[]"), "`domains` is empty", "3:11", "whose mail is it?");
    assert_route_error(
        &route("[\"a.test\", \"A.TEST\"]"),
        "the domain a.test is there twice",
        "3:22",
        "first on line 3",
    );
    let two = format!("domains = [\"a.test\"]\n{primary}\n[[route]]\ndomains = [\"b.test\", \"a.test\"]\n{primary}");
    assert_route_error(&two, "the domain a.test is there twice", "6:22", "first on line 3");

    let to = |primary: &str| format!("domains = [\"a.test\"]\nprimary = {primary}");
    assert_route_error(&to("[]"), "`primary` is empty", "4:11", "name the primary, or leave it out to follow MX");
    assert_route_error(
        &to("[\"mx2.example.net\"]"),
        "the primary mx2.example.net:25 is ourselves",
        "4:12",
        "we listen on [::]:25",
    );
    assert_route_error(
        &to("[\"h\", \"127.0.0.1\"]"),
        "the primary 127.0.0.1:25 is ourselves",
        "4:17",
        "we listen on [::]:25",
    );
    assert_route_error(
        &to("[\"::1\"]"),
        "bad address in `primary`",
        "4:12",
        "an IPv6 address stands in brackets, such as [2001:db8::1]:25",
    );
    assert!(only_error("hostname = \"a.test\"\n").contains("missing `route`"));
}

#[test]
fn a_route_without_a_primary_follows_mx() {
    let toml =
        "hostname = \"a.test\"\n[dns]\nservers = [\"127.0.0.1\"]\n[[route]]\ndomains = [\"b.test\", \"*.b.test\"]\n";
    let config = Place::with(toml).resolve(&Flags::default()).unwrap();
    assert_eq!(crate::routing::shown(&crate::routing::targets(&config.routes[0])), ["MX of b.test"]);
    assert_eq!(config.dns_servers, ["127.0.0.1:53".parse().unwrap()]);
    let bad = only_error(&toml.replace("127.0.0.1", "localhost"));
    assert!(bad.contains("a DNS server is IP or IP:PORT"), "{bad}");
}

#[test]
fn a_route_name_is_one_word_and_nobody_elses() {
    let route = |name: &str, domain: &str| format!("name = \"{name}\"\ndomains = [\"{domain}\"]\nprimary = [\"h\"]");
    for bad in ["", "two words", "a/b", "caf\u{e9}"] {
        assert_route_error(
            &route(bad, "a.test"),
            "bad `name`",
            "3:8",
            "letters, digits, `.`, `-` and `_`, such as \"office\"",
        );
    }
    let two = format!("{}\n[[route]]\n{}", route("office", "a.test"), route("office", "b.test"));
    assert_route_error(&two, "two routes have the name `office`", "7:8", "the first is on line 3");
}

#[test]
fn recipients_that_would_refuse_all_mail_or_nobody_can_have_are_errors() {
    let with = |recipients: &str| format!("domains = [\"a.test\"]\nprimary = [\"h\"]\nrecipients = {recipients}");
    let help = "such as info@example.com; a file is named \"file:PATH\"";
    let x = "\"x@a.test\"";
    assert_route_error(
        &with(&format!("[{x}, \"info\"]")),
        "`info` is no recipient: address has no domain",
        "5:27",
        help,
    );
    assert_route_error(
        &with(&format!("[{x}, \"i@b.test\"]")),
        "`i@b.test` is in no domain of this route",
        "5:27",
        "move it, or add its domain",
    );
    assert_route_error(
        &with("[]"),
        "no address in `recipients`",
        "5:14",
        "all mail would be refused; leave it out to take any",
    );
}

#[test]
fn a_bad_line_of_a_recipients_file_is_shown_where_it_is() {
    let toml =
        "hostname = \"a.test\"\n[[route]]\ndomains = [\"a.test\"]\nprimary = [\"h\"]\nrecipients = [\"file:list\"]\n";
    let place = Place::with(toml).and("list", "# list\nx@a.test\n  y@b.test # gone\n");
    let expected = "\
error: `y@b.test` is in no domain of this route
  --> list:3:3
  3 |   y@b.test # gone
    |   ^^^^^^^^ move it, or add its domain
1 error; nothing was started, no port is open
";
    assert_eq!(place.refusal(&Flags::default()).0, expected);

    let binary = Place::with(toml).and("list", &format!("x@a.test\n{}", "junk\n".repeat(5_000)));
    let (shown, _) = binary.refusal(&Flags::default());
    assert!(shown.contains("error: 4990 more bad lines in list\n"), "{shown}");
    assert!(shown.ends_with("\n11 errors; nothing was started, no port is open\n"), "{shown}");

    let emptied = Place::with(toml).and("list", "# nobody left\n");
    assert!(emptied.refusal(&Flags::default()).0.contains("all mail would be refused"));
}

#[test]
fn a_route_of_a_wildcard_has_a_name_that_can_be_typed() {
    let config = Place::with("").resolve(&routes(&["*.a.test,a.test=h", "*.b.a.test=i"])).unwrap();
    assert_eq!(config.routes.iter().map(|route| route.name.as_str()).collect::<Vec<_>>(), ["a.test", "b.a.test"]);
    assert_eq!(config.routes[0].domains[0].to_string(), "*.a.test");
}

#[test]
fn an_address_below_a_wildcard_is_a_recipient_of_its_route() {
    let toml = |address: &str| {
        format!(
            "hostname = \"a.test\"\n[[route]]\ndomains = [\"*.b.test\"]\nprimary = [\"h\"]\nrecipients = [\"{address}\"]\n"
        )
    };
    let config = Place::with(&toml("x@c.B.test")).resolve(&Flags::default()).unwrap();
    assert_eq!(config.routes[0].name, "b.test");
    assert!(only_error(&toml("x@b.test")).contains("`x@b.test` is in no domain of this route"));
}
