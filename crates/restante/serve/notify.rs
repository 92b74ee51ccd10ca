//! What the service manager hears of us (sd_notify(3)): that mail can be taken, and that we are about to stop.
//!
//! Refuses to matter: without a manager nothing is said, and one that does not listen is logged and costs no mail.
//!
//! A reload is not announced yet. For `Type=notify-reload` (systemd 253) it has to say `Reloading` together with
//! `NotifyState::monotonic_usec_now()` first and `Ready` last; the unit's `ExecReload=` needs neither.

use sd_notify::NotifyState;

/// The journal is being read. How long that takes depends on its length: the unit sets no limit for the start.
pub(super) fn starting() {
    tell(&[NotifyState::Status("reading the journal")]);
}

/// A 250 is possible. To be said together with the `ready:` lines.
pub(super) fn ready(routes: usize) {
    let plural = if routes == 1 { "" } else { "s" };
    tell(&[NotifyState::Ready, NotifyState::Status(&format!("accepting mail; {routes} route{plural}"))]);
}

/// No new mail is taken from here on.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

fn tell(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("cannot notify the service manager: {error}");
    }
}
