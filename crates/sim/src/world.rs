//! The world around the process: time, clients, primaries, an operator, and a disk that fails. One thing happens at a
//! time, in the order of an agenda, and chance comes from the seed alone.

use crate::client::{Client, Says};
use crate::draw::Draw;
use crate::history::{History, instant};
use crate::intake::{Conversation, Wants};
use crate::primary::{Attempt, Primary};
use crate::process::{Entry, Process, Waits};
use crate::seam::Seam;
use crate::{Broken, Failure, Plan, Rule, Summary};
use restante_envelope::{DomainName, RouteName, Timestamp};
use restante_journal::sim::SimStorage;
use restante_ledger::{Action, Fact, Operated, Position, RecipientIndex, RecipientState};
use restante_relay::{Flush, RouteSettings, Routes};
use restante_smtp::{Resolution, Settings, Trouble};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::sync::Arc;

/// Until then everything may go wrong.
const CALM_AT_MS: u64 = 240_000;
/// From then on nothing does, and everything must get through: the longest wait is an hour, and it is not waited for.
const END_MS: u64 = CALM_AT_MS + 3 * 3_600_000;
pub(crate) const ROUTES: [&str; 2] = ["a", "b"];

/// Something that happens at its time. What concerns a process that has ended by then is void.
#[derive(Debug)]
pub(crate) enum Happening {
    ClientActs(usize),
    Commit {
        epoch: u32,
    },
    Answer {
        epoch: u32,
        client: usize,
        connection: u32,
        resolution: Resolution,
    },
    AttemptEnds {
        epoch: u32,
        attempt: Attempt,
    },
    ProbeEnds {
        epoch: u32,
        route: usize,
        ok: bool,
    },
    Prove {
        epoch: u32,
    },
    Retry {
        epoch: u32,
    },
    Start,
    Stop,
    Crash {
        cut: bool,
    },
    /// A call to come will fail, or be the last one.
    Arm,
    Full,
    Room,
    Spoil,
    Jump,
    /// Memory runs short.
    Forget,
    Operate,
    Audit,
    Switch(usize),
    Calm,
    ReleaseAll,
}

fn routes_of(max_connections: usize) -> Result<Arc<Routes>, Failure> {
    let route = |name: &str| {
        let domain = DomainName::parse(&format!("{name}.test")).ok();
        RouteSettings {
            name: RouteName::new(name),
            domains: domain.into_iter().map(Into::into).collect(),
            next_hops: vec![format!("mail.{name}.test:25")],
            recipients: None,
            max_connections,
            attempts_ahead: 1,
            per_minute: None,
            expire: restante_relay::EXPIRE_DEFAULT,
            expire_cap: restante_relay::EXPIRE_CAP_DEFAULT,
        }
    };
    let routes = Routes::new(ROUTES.map(route).into());
    routes.map(Arc::new).map_err(|error| Failure { rule: Rule::Panic, what: error.to_string() })
}

/// See the module's head.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) draw: Draw,
    /// Milliseconds since the beginning, as nobody in the process can see them.
    pub(crate) time: u64,
    /// How far the clock on the wall is off.
    pub(crate) off: i64,
    agenda: BTreeMap<(u64, u64), Happening>,
    entered: u64,
    pub(crate) disk: SimStorage,
    pub(crate) seam: Seam,
    pub(crate) process: Option<Process>,
    /// Counts the processes.
    pub(crate) epoch: u32,
    pub(crate) clients: Vec<Client>,
    pub(crate) primaries: Vec<Primary>,
    pub(crate) history: History,
    pub(crate) routes: Arc<Routes>,
    /// As the relay has them.
    pub(crate) relayed: Arc<Routes>,
    settings: Arc<Settings>,
    pub(crate) calm: bool,
    pub(crate) is_full: bool,
    /// What a `recover` set aside.
    pub(crate) aside: BTreeSet<String>,
    /// At most so many bytes, were they all written to segments.
    pub(crate) written_bytes: u64,
    /// Where the record stands that names a blob.
    pub(crate) blobs: BTreeMap<String, Position>,
    pub(crate) summary: Summary,
    pub(crate) trace: Option<Vec<String>>,
}

impl World {
    pub(crate) fn new(plan: Plan, traced: bool) -> Result<Self, Failure> {
        let routes = routes_of(2)?;
        let relayed = if plan.broken == Broken::ConnectsAtWill { routes_of(20)? } else { routes.clone() };
        let mut draw = Draw::new(plan.seed);
        let disk = SimStorage::default();
        let clients = (0..plan.clients).map(|_| Client::new(plan.mails, &mut draw, !plan.chaos)).collect();
        let mut world = Self {
            seam: Seam { disk: disk.clone(), broken: plan.broken },
            plan,
            time: 0,
            off: 0,
            agenda: BTreeMap::new(),
            entered: 0,
            disk,
            process: None,
            epoch: 0,
            clients,
            primaries: vec![Primary::default(), Primary::default()],
            history: History::default(),
            routes,
            relayed,
            settings: Arc::new(Settings::new("mx2.test".into(), 1 << 20)),
            calm: false,
            is_full: false,
            aside: BTreeSet::new(),
            written_bytes: 0,
            blobs: BTreeMap::new(),
            summary: Summary { seeds: 1, ..Summary::default() },
            trace: traced.then(Vec::new),
            draw,
        };
        world.schedule();
        Ok(world)
    }

    fn schedule(&mut self) {
        for client in 0..self.clients.len() {
            self.later(10, 5_000, Happening::ClientActs(client));
        }
        if let Some((call, _)) = self.plan.die {
            self.disk.die_at(call);
        }
        if let Some((call, kind)) = self.plan.fail {
            self.disk.fail_call(call, kind);
        }
        self.happens_in(0, Happening::Start);
        self.happens_in(CALM_AT_MS, Happening::Calm);
        if !self.plan.chaos {
            self.primaries.iter_mut().for_each(Primary::come_back);
            return;
        }
        let until = CALM_AT_MS - 1;
        for route in 0..ROUTES.len() {
            self.later(0, 40_000, Happening::Switch(route));
        }
        for make in [|| Happening::Arm, || Happening::Operate, || Happening::Audit] {
            for _ in 0..1 + self.draw.below(4) {
                self.later(0, until, make());
            }
        }
        for (make, most) in [
            ((|| Happening::Spoil) as fn() -> Happening, 4),
            (|| Happening::Jump, 3),
            (|| Happening::Forget, 3),
            (|| Happening::Stop, 2),
            (|| Happening::Crash { cut: true }, 2),
            (|| Happening::Crash { cut: false }, 2),
            (|| Happening::Full, 2),
        ] {
            for _ in 0..self.draw.below(most) {
                self.later(0, until, make());
            }
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        instant(i64::try_from(self.time).unwrap_or(i64::MAX).saturating_add(self.off))
    }

    pub(crate) fn happens_in(&mut self, wait: u64, happening: Happening) {
        self.entered += 1;
        self.agenda.insert((self.time + wait, self.entered), happening);
    }

    /// Some time from `least` ms from now on, within `within` ms.
    pub(crate) fn later(&mut self, least: u64, within: u64, happening: Happening) {
        let wait = least + self.draw.below(within);
        self.happens_in(wait, happening);
    }

    pub(crate) fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let (s, ms) = (self.time / 1000, self.time % 1000);
            trace.push(format!("{s:>6}.{ms:03} {}", what()));
        }
    }

    /// Runs to the end of the history.
    pub(crate) fn run(&mut self) -> Result<(), Failure> {
        while !self.is_over() {
            self.act()?;
            self.check_bounds()?;
            let next = self.agenda.first_key_value().map(|((at, _), _)| *at);
            let wake = self
                .next_wake()
                .map(|at| self.time + u64::try_from(at.since(self.now()).as_millis()).unwrap_or(0).max(1));
            let Some(at) = next.into_iter().chain(wake).min().filter(|at| *at < END_MS) else {
                let routes = self.process.as_ref().map(|process| process.relay.route_status(self.now()));
                let what = format!("after the calm, it did not end: {:?}; {routes:?}", self.history.messages);
                return Err(Failure { rule: Rule::Delivery, what });
            };
            self.time = at;
            if next == Some(at)
                && let Some((_, happening)) = self.agenda.pop_first()
            {
                self.happen(happening)?;
            } else {
                self.wake()?;
            }
        }
        self.end()
    }

    fn is_over(&self) -> bool {
        let idle = self.process.as_ref().is_some_and(|p| p.line.is_empty() && p.refused.is_empty());
        let done = |client: &Client| client.is_done();
        self.calm && idle && self.clients.iter().all(done) && self.history.is_settled()
    }

    fn next_wake(&self) -> Option<Timestamp> {
        let process = self.process.as_ref()?;
        let sessions = process.conversations.values().filter_map(|c| c.session.poll_timeout());
        sessions.chain(process.relay.poll_timeout()).min()
    }

    /// Time passed: some session may have run out of it.
    fn wake(&mut self) -> Result<(), Failure> {
        let now = self.now();
        let Some(process) = &mut self.process else { return Ok(()) };
        let mut late = Vec::new();
        for (client, conversation) in &mut process.conversations {
            if conversation.session.poll_timeout().is_some_and(|at| at <= now) {
                conversation.handle_timeout(now);
                late.push(*client);
            }
        }
        late.into_iter().try_for_each(|client| self.converse(client))
    }

    fn happen(&mut self, happening: Happening) -> Result<(), Failure> {
        let epoch = self.epoch;
        match happening {
            Happening::ClientActs(client) => self.client_acts(client),
            Happening::Commit { epoch: e } if e == epoch => self.commit(),
            Happening::Answer { epoch: e, client, connection, resolution } if e == epoch => {
                self.answer(client, connection, resolution)
            }
            Happening::AttemptEnds { epoch: e, attempt } => self.attempt_ends(e == epoch, attempt),
            Happening::ProbeEnds { epoch: e, route, ok } if e == epoch => {
                self.probe_ends(route, ok);
                Ok(())
            }
            Happening::Prove { epoch: e } if e == epoch => self.prove(),
            Happening::Retry { epoch: e } if e == epoch => self.retry(),
            Happening::Start => self.start(),
            Happening::Stop => self.stop(),
            Happening::Crash { .. } if self.calm || self.process.is_none() => Ok(()),
            Happening::Crash { cut } => self.crash(cut),
            Happening::Operate => self.operate(),
            Happening::Audit => self.audit(),
            Happening::ReleaseAll => self.release_all(),
            other => {
                self.change(other);
                Ok(())
            }
        }
    }

    /// What changes the world, and not the process.
    fn change(&mut self, happening: Happening) {
        if self.calm {
            return;
        }
        match happening {
            Happening::Arm => self.arm(),
            Happening::Full => {
                let room = self.disk.used() + self.draw.index(64 << 10);
                self.disk.set_room(Some(room));
                self.is_full = true;
                self.note(|| "the disk is full".into());
                self.summary.faults += 1;
                self.later(1_000, 40_000, Happening::Room);
            }
            Happening::Room => {
                self.disk.set_room(None);
                self.is_full = false;
            }
            Happening::Spoil => self.spoil(),
            Happening::Forget => self.disk.evict(),
            Happening::Jump => {
                let seconds = i64::try_from(1 + self.draw.below(7_200)).unwrap_or(1);
                let back = self.draw.one_in(2);
                self.off += if back { -seconds } else { seconds } * 1_000;
                self.note(|| format!("the clock jumps by {seconds} s{}", if back { " back" } else { "" }));
            }
            Happening::Switch(route) => self.switch(route),
            Happening::Calm => self.calm_down(),
            _ => {}
        }
    }

    fn arm(&mut self) {
        let within = if self.draw.one_in(3) { 12 } else { 60 };
        let call = 1 + self.draw.below(within);
        match self.draw.below(10) {
            0..3 => self.disk.fail_call(call, ErrorKind::Other),
            3 => self.disk.fail_call(call, ErrorKind::StorageFull),
            4 => {
                self.disk.write_back_next();
                self.disk.die_at(call);
            }
            _ => self.disk.die_at(call),
        }
        self.summary.faults += 1;
        self.note(|| format!("trouble is set for disk call {call} from here"));
    }

    fn calm_down(&mut self) {
        self.note(|| "from now on nothing goes wrong".into());
        self.calm = true;
        if !self.disk.is_dead() {
            self.disk.revive();
        }
        self.disk.set_room(None);
        self.is_full = false;
        self.primaries.iter_mut().for_each(Primary::come_back);
        self.happens_in(1, Happening::ReleaseAll);
    }

    fn client_acts(&mut self, number: usize) -> Result<(), Failure> {
        let Some(client) = self.clients.get_mut(number) else { return Ok(()) };
        let history = &mut self.history;
        let said = client.says(&mut self.draw, &mut |body| history.transmit(body));
        match said {
            Says::Done => return Ok(()),
            Says::Connects => {
                let now = self.now();
                // Nobody answers: the next process does.
                let Some(process) = &mut self.process else { return self.again(number, 2_000) };
                let Some(client) = self.clients.get_mut(number) else { return Ok(()) };
                client.connected();
                let (settings, routes) = (self.settings.clone(), self.routes.clone());
                let blob = u128::from(self.draw.bits()) << 64;
                let seam = self.seam.clone();
                let conversation = Conversation::new(settings, routes, seam, client.connection, blob, now);
                process.conversations.insert(number, conversation);
                self.converse(number)?;
            }
            Says::Bytes(bytes) => {
                if let Some(conversation) = self.conversation(number) {
                    conversation.receive(&bytes);
                }
                self.converse(number)?;
            }
            Says::HangsUp => {
                self.note(|| format!("client {number} hangs up"));
                self.hang_up(number)?;
            }
            Says::Nothing => {}
        }
        self.again(number, 1_500)
    }

    fn again(&mut self, number: usize, within: u64) -> Result<(), Failure> {
        self.later(1, within, Happening::ClientActs(number));
        Ok(())
    }

    fn conversation(&mut self, client: usize) -> Option<&mut Conversation> {
        self.process.as_mut()?.conversations.get_mut(&client)
    }

    /// The connection ends, whoever wanted it.
    fn hang_up(&mut self, client: usize) -> Result<(), Failure> {
        if let Some(mut conversation) = self.process.as_mut().and_then(|p| p.conversations.remove(&client)) {
            conversation.disconnected();
        }
        if let Some(client) = self.clients.get_mut(client) {
            client.disconnected();
        }
        self.after_disk()
    }

    /// Does what a connection wants, until it wants input.
    pub(crate) fn converse(&mut self, number: usize) -> Result<(), Failure> {
        loop {
            let now = self.now();
            let Some(conversation) = self.conversation(number) else { return Ok(()) };
            let (wants, connection) = (conversation.step(now), conversation.connection);
            let failed = conversation.intake.directory_failed;
            if self.disk.is_dead() {
                return self.after_disk();
            }
            match wants {
                Wants::Input => return if failed { self.fail_stop() } else { Ok(()) },
                Wants::Output(bytes) => self.client_hears(number, &bytes)?,
                Wants::Close => return self.hang_up(number),
                Wants::Commit(offer) => {
                    let fact = Fact::Accepted(offer.accepted);
                    let entry = Entry { record: offer.record, fact, waits: Waits::Client(number, connection) };
                    if let Some(refused) = self.enter(entry) {
                        crate::process::forget(&refused, &self.seam);
                        self.note(|| format!("client {number}: too much in line"));
                        self.answer(number, connection, Resolution::Failed(Trouble::Overloaded))?;
                    }
                }
            }
        }
    }

    fn client_hears(&mut self, number: usize, bytes: &[u8]) -> Result<(), Failure> {
        let Some(client) = self.clients.get_mut(number) else { return Ok(()) };
        let history = &mut self.history;
        let promises = client.hears(bytes, &mut self.draw, &mut |body| history.transmit(body));
        for promise in promises {
            self.note(|| format!("client {number} hears 250 for {} to {:?}", promise.id, promise.recipients));
            self.history.promised(promise)?;
        }
        Ok(())
    }

    /// The journal's word on a message reaches its connection.
    pub(crate) fn answer(&mut self, client: usize, connection: u32, resolution: Resolution) -> Result<(), Failure> {
        let now = self.now();
        if let Some(conversation) = self.conversation(client).filter(|c| c.connection == connection) {
            conversation.session.resolve(resolution, now);
        }
        self.converse(client)
    }

    /// An operator freezes something, or lets it go.
    fn operate(&mut self) -> Result<(), Failure> {
        let Some(process) = &self.process else { return Ok(()) };
        let (action, changes): (_, fn(RecipientState) -> bool) = if self.draw.one_in(2) {
            (Action::Hold, |state| matches!(state, RecipientState::Due | RecipientState::Deferred(_)))
        } else {
            (Action::Release, |state| matches!(state, RecipientState::Hold | RecipientState::Refused))
        };
        let chosen = process.relay.ledger().iter().map(|(id, t)| {
            let recipients = t.recipients.iter().enumerate().filter(|(_, r)| changes(r.state));
            (id, recipients.filter_map(|(index, _)| RecipientIndex::try_from(index).ok()).collect::<Vec<_>>())
        });
        let chosen: Vec<_> = chosen.filter(|(_, recipients)| !recipients.is_empty()).collect();
        let Some((id, recipients)) = chosen.get(self.draw.index(chosen.len())).cloned() else { return Ok(()) };
        self.submit_operation(Operated {
            id,
            at: self.now(),
            action,
            recipients,
            actor: "operator".into(),
            reason: "the seed".into(),
        })
    }

    pub(crate) fn submit_operation(&mut self, operated: Operated) -> Result<(), Failure> {
        self.note(|| format!("operator: {:?} {}", operated.action, operated.id));
        let fact = Fact::Operated(operated);
        let record = restante_journal::Prepared::fact(&fact, Vec::new());
        let _full_line = self.enter(Entry { record, fact, waits: Waits::Nobody });
        Ok(())
    }

    /// In the calm: whatever was frozen goes on, and nobody waits for his time.
    fn release_all(&mut self) -> Result<(), Failure> {
        self.happens_in(30_000, Happening::ReleaseAll);
        let now = self.now();
        let Some(process) = &mut self.process else { return Ok(()) };
        process.relay.flush(Flush::All, now);
        let is_frozen = |state| matches!(state, RecipientState::Hold | RecipientState::Refused);
        let is_bounced = |state| state == RecipientState::Bounced;
        let mut orders = Vec::new();
        for (id, transaction) in process.relay.ledger().iter() {
            let all = || (0..transaction.recipients.len()).filter_map(|n| RecipientIndex::try_from(n).ok()).collect();
            let any = |is: fn(RecipientState) -> bool| transaction.recipients.iter().any(|r| is(r.state));
            orders.extend(any(is_bounced).then(|| (id, Action::Undo, all())));
            orders.extend(any(is_frozen).then(|| (id, Action::Release, all())));
        }
        for (id, action, recipients) in orders {
            let (actor, reason) = ("operator".into(), "the calm".into());
            self.submit_operation(Operated { id, at: now, action, recipients, actor, reason })?;
        }
        Ok(())
    }
}
