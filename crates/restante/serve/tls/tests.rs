//! Which certificate is served after what happened to its files.

use super::*;
use std::os::unix::fs::PermissionsExt as _;

/// A directory with certificates `a` and `b`, each in two files.
fn directory() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        let made = rcgen::generate_simple_self_signed([format!("{name}.test")]).unwrap();
        std::fs::write(directory.path().join(name), made.cert.pem()).unwrap();
        std::fs::write(directory.path().join(format!("{name}.key")), made.signing_key.serialize_pem()).unwrap();
    }
    directory
}

fn files(directory: &Path, chain: &str, key: &str) -> CertificateFiles {
    CertificateFiles { chain: directory.join(chain), key: directory.join(key) }
}

/// The certificate that the next handshake gets.
fn served(tls: &Tls) -> Vec<u8> {
    tls.current.0.read().unwrap().end_entity_cert().unwrap().to_vec()
}

fn new(configured: Option<&CertificateFiles>, data_dir: &Path, hostname: &str) -> Arc<Tls> {
    Tls::new(configured, data_dir, hostname).unwrap()
}

#[test]
fn the_self_signed_certificate_outlives_a_restart_and_no_change_of_name() {
    let data = tempfile::tempdir().unwrap();
    let path = data.path().join(SELF_SIGNED);
    let first = served(&new(None, data.path(), "mx2.example.test"));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(!data.path().join(SELF_SIGNED_NEW).exists());
    assert_eq!(served(&new(None, data.path(), "MX2.example.test")), first);
    let renamed = served(&new(None, data.path(), "mx3.example.test"));
    assert_ne!(renamed, first);
    std::fs::write(&path, &std::fs::read(&path).unwrap()[..200]).unwrap();
    let repaired = served(&new(None, data.path(), "mx3.example.test"));
    assert_ne!(repaired, renamed);
    assert_eq!(served(&new(None, data.path(), "mx3.example.test")), repaired);
    let long = format!("{}.example.test", "x".repeat(63));
    assert_eq!(served(&new(None, data.path(), &long)), served(&new(None, data.path(), &long)));
}

#[test]
fn a_disk_without_room_for_the_self_signed_certificate_is_no_reason_not_to_start() {
    let data = tempfile::tempdir().unwrap();
    std::fs::create_dir(data.path().join(SELF_SIGNED_NEW)).unwrap();
    new(None, data.path(), "mx2.example.test");
}

#[test]
fn a_certificate_that_cannot_be_served_is_refused_by_file_and_reason() {
    let directory = directory();
    let at = directory.path();
    std::fs::write(at.join("empty"), "").unwrap();
    std::fs::write(at.join("cut"), &std::fs::read(at.join("a")).unwrap()[..200]).unwrap();
    std::fs::write(at.join("junk"), "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    std::fs::write(at.join("huge"), vec![b'x'; 2 << 20]).unwrap();
    std::fs::write(
        at.join("locked.key"),
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    )
    .unwrap();
    std::fs::write(at.join("junk.key"), "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
    std::fs::write(at.join("garbled"), "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n").unwrap();
    let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    std::fs::write(at.join("old-locked.key"), old).unwrap();
    for (chain, key, at_fault, why) in [
        ("none", "a.key", "none", "No such file"),
        ("a", "none.key", "none.key", "No such file"),
        (".", "a.key", ".", "not a regular file"),
        ("empty", "a.key", "empty", "no certificate in it"),
        ("a.key", "a.key", "a.key", "no certificate in it"),
        ("cut", "a.key", "cut", "cut short or garbled"),
        ("garbled", "a.key", "garbled", "cut short or garbled"),
        ("junk", "a.key", "junk", "unusable certificate"),
        ("huge", "a.key", "huge", "larger than 1 MiB"),
        ("a", "a", "a", "no private key in it"),
        ("a", "locked.key", "locked.key", "the key has a passphrase"),
        ("a", "old-locked.key", "old-locked.key", "the key has a passphrase"),
        ("a", "junk.key", "junk.key", "unusable key"),
        ("a", "b.key", "b.key", "not the key of the first certificate in"),
    ] {
        let Err(error) = Tls::new(Some(&files(at, chain, key)), at, "mx2.example.test") else {
            panic!("{chain} and {key} were taken");
        };
        let said = format!("{error:#}");
        assert!(said.starts_with(&at.join(at_fault).display().to_string()) && said.contains(why), "{said}");
        assert!(!said.contains("AAAA"), "a key's bytes are nobody's business: {said}");
    }
}

#[test]
fn files_that_do_not_belong_together_replace_nothing() {
    let directory = directory();
    let at = directory.path();
    for from in ["a", "a.key"] {
        std::fs::copy(at.join(from), at.join(from.replace('a', "live"))).unwrap();
    }
    let (live, live_key) = (at.join("live"), at.join("live.key"));
    let tls = new(Some(&files(at, "live", "live.key")), at, "mx2.example.test");
    let a = served(&tls);
    let replace = |with: &str, file: &Path| {
        std::fs::copy(at.join(with), at.join("next")).unwrap();
        std::fs::rename(at.join("next"), file).unwrap();
    };
    tls.look();
    replace("b", &live);
    tls.look();
    assert!(tls.watched.lock().unwrap().warned.is_none(), "the key may be on its way");
    tls.look();
    let warned = tls.watched.lock().unwrap().warned.clone().unwrap();
    assert!(warned.contains("live.key: not the key of"), "{warned}");
    assert_eq!(served(&tls), a);
    replace("b.key", &live_key);
    tls.look();
    assert_eq!(served(&tls), a);
    tls.look();
    assert_ne!(served(&tls), a);
    assert!(tls.watched.lock().unwrap().warned.is_none());
    // Both are gone: what was served stays.
    let b = served(&tls);
    std::fs::remove_file(&live).unwrap();
    tls.look();
    tls.look();
    assert!(tls.watched.lock().unwrap().warned.is_some());
    assert_eq!(served(&tls), b);
}

#[test]
fn a_reload_takes_other_files_or_leaves_all_as_it_was() {
    let directory = directory();
    let at = directory.path();
    let tls = new(Some(&files(at, "a", "a.key")), at, "mx2.example.test");
    let a = served(&tls);
    assert!(tls.reload(Some(&files(at, "b", "a.key"))).is_err());
    assert_eq!(served(&tls), a);
    assert_eq!(tls.reload(Some(&files(at, "a", "a.key"))).unwrap(), None, "nothing has changed");
    let said = tls.reload(Some(&files(at, "b", "b.key"))).unwrap();
    assert_eq!(said, Some(format!("certificate: now from {}", at.join("b").display())));
    let b = served(&tls);
    assert_ne!(b, a);
    // From now on these are the files that are watched.
    assert_eq!(tls.watched.lock().unwrap().files.chain, at.join("b"));
    // Another certificate in the same files.
    for (from, to) in [("a", "b"), ("a.key", "b.key")] {
        std::fs::copy(at.join(from), at.join(to)).unwrap();
    }
    assert_eq!(tls.reload(Some(&files(at, "b", "b.key"))).unwrap(), said);
    assert_eq!(served(&tls), a);
    assert!(tls.reload(None).unwrap().is_some_and(|said| said.ends_with(SELF_SIGNED)));
    assert!(served(&tls) != a && at.join(SELF_SIGNED).exists());
}
