//! Encryption towards the primary, with the TLS that the world's servers use. It refuses to look at what we say of it ourselves.

mod needs_root {
    use crate::harness::postfix::{Postfix, Role};
    use crate::harness::{Client, Message, Serve, eventually, scratch};

    #[test]
    fn a_primary_that_offers_starttls_gets_nothing_in_clear() {
        let directory = scratch();
        let postfix = Postfix::start(Role::EncryptingPrimary);
        let daemon = Serve::new(&directory.path().join("data"), postfix.smtp.port()).start();
        let mut client = Client::ehlo(daemon.smtp);
        // Small, one after the other over the same connection, and many TLS records long.
        for (n, size) in [500, 500, 3_000_000].into_iter().enumerate() {
            let message = Message::new("tls", n as u64, size);
            assert_eq!(client.send("sender@example.net", &["box@example.test"], &message.content).unwrap().code, 250);
        }
        eventually("all mail in the mailbox", || (postfix.mailbox().len() == 3).then_some(()));
        daemon.wait_until_empty();
        // The connection that carried mail ends when it has been idle for a while.
        let log = eventually("Postfix to see mail off", || {
            Some(postfix.log())
                .filter(|log| log.lines().any(|line| line.contains("disconnect") && line.contains(" data=")))
        });
        assert!(log.contains("TLS connection established from localhost[127.0.0.1]: TLSv1.3"), "{log}");
        let in_clear = |line: &&str| line.contains(" data=") && !line.contains(" starttls=1 ");
        assert_eq!(log.lines().find(in_clear), None);
    }
}
