//! Content that comes in pieces: wherever it is cut, and wherever it ends too early.

use super::*;
use crate::Stage;
use proptest::prelude::*;
use std::collections::VecDeque;

const GO: &str = "250 ok\r\n250 ok\r\n354 go\r\n";
const ONE: [&str; 1] = ["a@example.test"];

/// Gives one piece after the other.
struct Pieces(VecDeque<Result<Vec<u8>, String>>);

impl Pieces {
    /// `content` cut at `cuts`; two cuts at one place make an empty piece.
    fn cut(content: &[u8], mut cuts: Vec<usize>) -> Self {
        cuts.extend([0, content.len()]);
        cuts.sort_unstable();
        Self(cuts.windows(2).map(|ends| Ok(content[ends[0]..ends[1]].to_vec())).collect())
    }

    /// Fails in place of the piece `at` and gives no more.
    fn failing_at(mut self, at: usize) -> Self {
        self.0.truncate(at);
        self.0.push_back(Err("segment 7: input/output error".into()));
        self
    }
}

impl Content for Pieces {
    fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, String> {
        self.0.pop_front().transpose()
    }
}

/// What was told and what arrived, whole or (behind the last message) in part.
async fn sent(mut content: Pieces, size_bytes: u64) -> (Vec<String>, bool, Vec<Vec<u8>>, Vec<u8>) {
    // A server that never gets to the dot still has the rest.
    let is_whole = content.0.iter().all(Result::is_ok);
    let is_whole = is_whole && content.0.iter().flatten().map(Vec::len).sum::<usize>() as u64 == size_bytes;
    let script = pipelining().pipelined(1, GO);
    let script =
        if is_whole { script.content().send("250 taken\r\n").expect("QUIT").send("221 bye\r\n") } else { script };
    let server = script.start().await;
    let mut connection = connected(&server).await;
    let delivery = deliver_from(&mut connection, &ONE, &mut content, size_bytes).await;
    if let [RecipientResult::Lost { stage, .. }] = delivery.results[..] {
        assert_eq!(stage, Stage::Content);
    }
    let usable = connection.is_usable();
    connection.quit().await;
    let seen = server.finish().await;
    (told(&delivery.results), usable, seen.messages, seen.rest)
}

/// No end of the content is in it, wherever the server looks.
fn has_no_dot(rest: &[u8]) -> bool {
    !rest.starts_with(b".\r\n") && !rest.windows(5).any(|w| w == b"\r\n.\r\n")
}

#[tokio::test]
async fn a_source_that_gives_more_or_less_than_announced_is_not_the_message() {
    for (announced, why) in [
        (CONTENT.len() - 1, "it is longer than it was when accepted"),
        (0, "it is longer than it was when accepted"),
        (CONTENT.len() + 2, "it ends 2 bytes too early"),
    ] {
        let (told, usable, _, rest) = sent(Pieces::cut(CONTENT, vec![5]), announced as u64).await;
        assert_eq!(told, [format!("lost: our own copy cannot be read: {why} while sending the content")]);
        assert!(!usable && has_no_dot(&rest));
    }
}

#[tokio::test]
async fn content_without_a_header_that_cannot_be_read_is_not_an_empty_message() {
    for (mut content, size_bytes) in
        [(Pieces(VecDeque::from([Err("gone".into())])), 0), (Pieces(VecDeque::from([Ok(b"a\r\n".to_vec())])), 0)]
    {
        let server = pipelining().pipelined(1, GO).start().await;
        let mut connection = connected(&server).await;
        let recipient = to(ONE[0]);
        let mail = Mail {
            reverse_path: &ReversePath::parse("s@example.test").unwrap(),
            recipients: &[&recipient],
            body: BodyType::SevenBit,
            smtputf8: false,
            dsn: &PLAIN,
            trace_header: b"",
            size_bytes,
        };
        let results = connection.deliver(&mail, &mut content, None).await.results;
        assert!(matches!(results[..], [RecipientResult::Lost { stage: Stage::Content, .. }]), "{results:?}");
        drop(connection);
        assert_eq!(server.finish().await.rest, b"");
    }
}

#[tokio::test]
async fn a_recipient_that_was_refused_before_stays_refused_when_our_copy_fails() {
    let server = pipelining().pipelined(2, "250 ok\r\n550 a\r\n250 ok\r\n354 go\r\n").start().await;
    let mut connection = connected(&server).await;
    let mut content = Pieces::cut(CONTENT, vec![5]).failing_at(1);
    let two = ["a@example.test", "b@example.test"];
    let results = deliver_from(&mut connection, &two, &mut content, CONTENT.len() as u64).await.results;
    let why = "lost: our own copy cannot be read: segment 7: input/output error while sending the content";
    assert_eq!(told(&results), ["550 a", why]);
}

#[tokio::test]
async fn content_that_nobody_wants_is_not_read() {
    let mut content = Pieces(VecDeque::new()).failing_at(0);
    let server = pipelining().pipelined(1, "250 ok\r\n550 a\r\n354 go\r\n").content().send("250 ok\r\n").start().await;
    let mut connection = connected(&server).await;
    assert_eq!(told(&deliver_from(&mut connection, &ONE, &mut content, 9).await.results), ["550 a"]);
    assert!(connection.is_usable());
    assert_eq!(content.0.len(), 1);
}

/// Lines in which dots, line ends and chunk ends meet as often as can be.
fn content() -> impl Strategy<Value = Vec<u8>> {
    let line = prop_oneof![
        3 => "\\.{0,3}[a-z]{0,2}".prop_map(String::into_bytes),
        1 => prop::collection::vec(any::<u8>().prop_filter("line end", |b| !matches!(b, b'\r' | b'\n')), 0..40),
    ];
    prop::collection::vec(line, 0..20)
        .prop_map(|lines| lines.into_iter().flat_map(|line| [line, b"\r\n".to_vec()].concat()).collect())
}

fn cuts() -> impl Strategy<Value = Vec<prop::sample::Index>> {
    prop::collection::vec(any::<prop::sample::Index>(), 0..30)
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn the_cut_of_the_content_changes_nothing(content in content(), cuts in cuts()) {
        let cuts = cuts.iter().map(|cut| cut.index(content.len() + 1)).collect();
        let (told, usable, messages, rest) = run(sent(Pieces::cut(&content, cuts), content.len() as u64));
        prop_assert_eq!((told, usable), (vec!["250 taken".to_owned()], true));
        prop_assert_eq!(messages, [[HEADER, &content].concat()]);
        prop_assert_eq!(rest, b"");
    }

    #[test]
    fn a_source_that_fails_never_yields_a_dot(content in content(), cuts in cuts(), at in any::<prop::sample::Index>()) {
        let cuts = cuts.iter().map(|cut| cut.index(content.len() + 1)).collect();
        let pieces = Pieces::cut(&content, cuts);
        // At the very end, too, when all was given.
        let at = at.index(pieces.0.len() + 1);
        let (told, usable, _, rest) = run(sent(pieces.failing_at(at), content.len() as u64));
        prop_assert!(told[0].starts_with("lost: our own copy cannot be read: segment 7"), "{told:?}");
        prop_assert!(!usable);
        prop_assert!(has_no_dot(&rest), "{:?}", String::from_utf8_lossy(&rest));
        prop_assert!(!rest.ends_with(b"QUIT\r\n"));
    }
}
