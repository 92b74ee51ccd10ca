//! What is written, what is asked, and what is refused.

use super::*;
use clap::Parser as _;

fn given(line: &str) -> args::Init {
    let line = format!("restante init {line}");
    match args::Cli::try_parse_from(line.split_whitespace()).unwrap().command {
        args::Command::Init(init) => init,
        other => panic!("{other:?}"),
    }
}

fn answered(line: &str, typed: &str) -> (anyhow::Result<Result<Answers, Vec<String>>>, String) {
    let mut said = String::new();
    let person = Person { input: Box::new(typed.as_bytes()), say: Box::new(|text| said.push_str(text)) };
    let answers = gather(&given(line), Some(person));
    (answers, said)
}

#[test]
fn what_is_written_is_short_and_passes_the_check() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("odd \" name"), "info@a.test\n").unwrap();
    let path = dir.path().join("restante.toml");
    for recipients in [None, Some(dir.path().join("odd \" name"))] {
        let mut answers =
            gather(&given("mx2.example.net --domain a.test,B.test --domain c.test --primary [::1]:26"), None)
                .unwrap()
                .unwrap();
        answers.recipients = recipients.clone();
        let text = toml(&answers, &path, None).unwrap();
        let config = config::check_text(&path, &text).unwrap();
        let [route] = &config.routes[..] else { panic!("{config:?}") };
        assert_eq!(joined(&route.domains), "a.test b.test c.test");
        assert_eq!((joined(&route.primary).as_str(), config.hostname.as_str()), ("[::1]:26", "mx2.example.net"));
        assert_eq!(route.recipients.as_ref().map(Vec::len), recipients.map(|_| 1));
        assert_eq!(config.data_dir, dir.path().join("restante-data"));
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).count();
        assert!(lines <= 15, "{lines} lines:\n{text}");
    }
}

fn joined<T: ToString>(list: &[T]) -> String {
    list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_wildcard_is_written_as_it_was_asked_for() {
    let answers = gather(&given("mx2.example.net --domain *.a.test --primary h.test"), None).unwrap().unwrap();
    let text = toml(&answers, Path::new("restante.toml"), None).unwrap();
    // The commented example, too, is an address that the route would take.
    for text in [text.clone(), text.replace("#recipients", "recipients").replace(", \"file:recipients\"", "")] {
        let config = config::check_text(Path::new("restante.toml"), &text).unwrap();
        assert_eq!(joined(&config.routes[0].domains), "*.a.test", "{text}");
    }
}

#[test]
fn the_service_s_journal_is_where_services_keep_theirs() {
    let answers = gather(&given("mx2.example.net --domain a.test --primary h.test"), None).unwrap().unwrap();
    let text = toml(&answers, Path::new("/etc/restante/restante.toml"), None).unwrap();
    assert!(text.contains("dir = \"/var/lib/restante\""), "{text}");
}

#[test]
fn the_data_directory_that_was_asked_for_is_the_one_written() {
    let answers = gather(&given("mx2.example.net --domain a.test --primary h.test"), None).unwrap().unwrap();
    let path = Path::new("/etc/restante/restante.toml");
    for data in ["/srv/mail", "mail"] {
        let text = toml(&answers, path, Some(Path::new(data))).unwrap();
        assert_eq!(config::check_text(path, &text).unwrap().data_dir, std::path::absolute(data).unwrap(), "{text}");
    }
}

#[test]
fn a_name_without_a_domain_is_refused() {
    let errors = gather(&given("mx2 --domain a.test --primary h.test"), None).unwrap().unwrap_err();
    assert!(errors[0].starts_with("HOSTNAME `mx2`: a name without a domain"), "{errors:?}");
}

#[test]
fn an_existing_file_is_never_written_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("restante.toml");
    std::fs::write(&path, "mine").unwrap();
    assert_eq!(write(&path, "theirs").unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    let init = given(&format!("mx2.example.net --domain a.test --primary h.test --output {}", path.display()));
    let error = run(&init, None, Output::new(true, false, true)).unwrap_err().to_string();
    assert!(error.contains("is there already"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    let new = dir.path().join("new.toml");
    write(&new, "x").unwrap();
    assert_eq!(new.metadata().unwrap().permissions().mode() & 0o777, FILE_MODE);
}

#[test]
fn nobody_to_ask_is_a_usage_error_that_names_what_is_missing() {
    let errors = gather(&given("--domain a.test"), None).unwrap().unwrap_err();
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(errors[0].contains("HOSTNAME") && errors[1].contains("--primary"), "{errors:?}");
    let errors = gather(&given("two,words --domain *,a.test --primary h:0"), None).unwrap().unwrap_err();
    let expected = [
        "HOSTNAME `two,words`: this is not a host name, such as mx2.example.net",
        "--domain `*`: `*` would take mail for everybody: name the domains",
        "--primary `h:0`: a port is a number from 1 to 65535",
    ];
    assert_eq!(errors, expected, "all at once, by the words of the configuration");
}

#[test]
fn a_wrong_answer_is_asked_again_and_no_answer_writes_nothing() {
    let (answers, said) = answered("", "192.0.2.1\nmx2.example.net\n*\na.test, b.test\nh.test:26\nabsent\n\n");
    let answers = answers.unwrap().unwrap();
    assert_eq!((answers.hostname.as_str(), answers.domains.len()), ("mx2.example.net", 2));
    assert_eq!((answers.primary.to_string().as_str(), answers.recipients), ("h.test:26", None));
    assert_eq!(said.matches("Our own name").count(), 2, "{said}");
    assert!(said.contains("would take mail for everybody") && said.contains(UNLISTED), "{said}");
    let (answers, said) = answered("mx2.example.net --primary h.test", "a.test\n");
    assert!(answers.unwrap_err().to_string().contains(NOT_WRITTEN), "{said}");
    assert!(!said.contains("Our own name"), "what was given is not asked: {said}");
    let (answers, said) = answered("mx2.example.net --primary h.test --domain a.test", "");
    assert!(answers.unwrap().is_ok() && said.is_empty(), "nothing is missing, nothing is asked: {said}");
}
