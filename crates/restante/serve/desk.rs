//! One route's desk: the attempts that wait for a connection, and the seats of the couriers that have or may open one.
//!
//! An attempt goes to a courier that has a connection and nothing to do; else to a new one, while there are seats; else it
//! waits, and whoever is free first takes it. Opens no connection itself, and decides nothing about mail.

use super::attempt::Job;
use restante_courier::Target;
use restante_envelope::{RouteName, TransactionId};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;

/// A job, and how large it is.
#[derive(Debug)]
pub(crate) struct Assignment {
    pub(crate) job: Job,
    pub(crate) content_len: u64,
}

/// The right to have one connection to the primary.
pub(crate) struct Seat(#[expect(dead_code, reason = "held, not read")] OwnedSemaphorePermit);

/// For the next hops of one time: a route that gets others gets another desk.
pub(crate) struct Desk {
    pub(crate) route: RouteName,
    pub(crate) next_hops: Arc<[Target]>,
    pub(crate) seats_max: usize,
    seats: Arc<Semaphore>,
    /// The lock is never held across a wait.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// In order; bounded by the attempts that the relay has under way.
    waiting: VecDeque<Assignment>,
    /// Couriers with nothing to do. The last is asked first, so that those in excess end.
    idle: Vec<oneshot::Sender<Assignment>>,
    /// In the hands of a courier that is busy with another; one a courier at most.
    ahead: Vec<TransactionId>,
    closed: bool,
}

impl Desk {
    pub(crate) fn new(route: RouteName, next_hops: Arc<[Target]>, seats_max: usize) -> Arc<Self> {
        let seats = Arc::new(Semaphore::new(seats_max));
        Arc::new(Self { route, next_hops, seats_max, seats, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an attempt in. What comes back is for a new courier: there may be `connections` of them.
    pub(crate) fn give(&self, mut assignment: Assignment, connections: usize) -> Option<(Seat, Assignment)> {
        let mut state = self.state();
        while let Some(courier) = state.idle.pop() {
            match courier.send(assignment) {
                Ok(()) => return None,
                Err(back) => assignment = back,
            }
        }
        state.waiting.push_back(assignment);
        if self.taken() >= connections.max(1) {
            return None;
        }
        let seat = self.seats.clone().try_acquire_owned().ok()?;
        state.waiting.pop_front().map(|first| (Seat(seat), first))
    }

    fn taken(&self) -> usize {
        self.seats_max - self.seats.available_permits().min(self.seats_max)
    }

    /// Seats that are taken, besides that of who asks.
    pub(crate) fn others(&self) -> usize {
        self.taken().saturating_sub(1)
    }

    /// The next attempt for a courier that has nothing to do; none if none comes in time, or none ever will.
    pub(crate) async fn next(&self, patience: Duration) -> Option<Assignment> {
        let mut turn = {
            let mut state = self.state();
            if state.closed || !state.waiting.is_empty() {
                return state.waiting.pop_front();
            }
            let (courier, turn) = oneshot::channel();
            state.idle.push(courier);
            turn
        };
        match timeout(patience, &mut turn).await {
            Ok(given) => given.ok(),
            Err(_idle) => {
                // One may have been given this very moment, or wait since.
                turn.close();
                let mut state = self.state();
                state.idle.retain(|courier| !courier.is_closed());
                turn.try_recv().ok().or_else(|| state.waiting.pop_front())
            }
        }
    }

    /// The next attempt that waits, if there is one.
    pub(crate) fn next_now(&self) -> Option<Assignment> {
        self.state().waiting.pop_front()
    }

    /// The next attempt that waits, if it is a small one: for a courier that is busy with another. Before it begins with it,
    /// it must ask [whether it still may](Self::begin).
    pub(crate) fn next_ahead(&self, content_len_max: u64) -> Option<Assignment> {
        let mut state = self.state();
        let first = state.waiting.pop_front_if(|first| first.content_len <= content_len_max)?;
        state.ahead.push(first.job.id);
        Some(first)
    }

    /// Whether an attempt that was taken ahead was not taken back since.
    pub(crate) fn begin(&self, id: TransactionId) -> bool {
        let mut state = self.state();
        let place = state.ahead.iter().position(|ahead| *ahead == id);
        place.map(|place| state.ahead.swap_remove(place)).is_some()
    }

    /// Takes an attempt back that nobody has begun; false if somebody has.
    pub(crate) fn take_back(&self, id: TransactionId) -> bool {
        let mut state = self.state();
        let before = state.waiting.len() + state.ahead.len();
        state.waiting.retain(|assignment| assignment.job.id != id);
        state.ahead.retain(|ahead| *ahead != id);
        state.waiting.len() + state.ahead.len() < before
    }

    /// A seat for a probe.
    pub(crate) async fn seat(&self, patience: Duration) -> Option<Seat> {
        let seat = timeout(patience, self.seats.clone().acquire_owned()).await;
        seat.ok()?.ok().map(Seat)
    }

    /// Gives a seat back. What comes back waits for nobody any more: there is no other courier.
    pub(crate) fn leave(&self, seat: Seat) -> Vec<Assignment> {
        let mut state = self.state();
        drop(seat);
        if self.seats.available_permits() < self.seats_max {
            return Vec::new();
        }
        state.waiting.drain(..).collect()
    }

    /// From now on nothing leads here: idle couriers take leave, busy ones do when they are done. Gives back what waits.
    pub(crate) fn close(&self) -> Vec<Assignment> {
        let mut state = self.state();
        state.closed = true;
        state.idle.clear();
        state.waiting.drain(..).collect()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.state().closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use restante_ledger::Position;

    const SOON: Duration = Duration::from_millis(1);
    const LONG: Duration = Duration::from_secs(60);

    fn desk(seats: usize) -> Arc<Desk> {
        Desk::new(RouteName::new("office"), Arc::from([]), seats)
    }

    fn assignment(n: u128) -> Assignment {
        let id = TransactionId::from_bits(n);
        let job = Job { id, position: Position { segment: 1, offset: 0 }, recipients: vec![0], attempt: 1 };
        Assignment { job, content_len: 100 }
    }

    fn bits(assignment: &Assignment) -> TransactionId {
        assignment.job.id
    }

    #[tokio::test]
    async fn there_are_never_more_couriers_than_seats_a_probe_included() {
        let desk = desk(2);
        let probe = desk.seat(SOON).await.unwrap();
        let (first, one) = desk.give(assignment(1), 20).unwrap();
        assert!(desk.give(assignment(2), 20).is_none() && desk.seat(SOON).await.is_none());
        assert_eq!(bits(&one), bits(&assignment(1)));
        assert!(desk.leave(first).is_empty());
        // What waited longest comes first, to the probe's courier as to a new one.
        let (second, two) = desk.give(assignment(3), 20).unwrap();
        assert_eq!(bits(&two), bits(&assignment(2)));
        assert_eq!(bits(&desk.next(SOON).await.unwrap()), bits(&assignment(3)));
        drop((probe, second));
    }

    #[tokio::test]
    async fn no_more_couriers_are_sent_than_the_primary_likes_and_the_first_always() {
        let desk = desk(5);
        let (first, _) = desk.give(assignment(1), 0).unwrap();
        assert!(desk.give(assignment(2), 1).is_none());
        let (_second, two) = desk.give(assignment(3), 2).unwrap();
        assert_eq!((bits(&two), desk.others()), (bits(&assignment(2)), 1));
        assert!(desk.leave(first).is_empty() && desk.others() == 0);
    }

    #[tokio::test]
    async fn what_waits_when_the_last_courier_leaves_is_given_back_and_not_lost() {
        let desk = desk(2);
        let seats = [1, 2].map(|n| desk.give(assignment(n), 20).unwrap().0);
        assert!(desk.give(assignment(3), 20).is_none());
        let left = seats.map(|seat| desk.leave(seat).len());
        assert_eq!(left, [0, 1]);
    }

    #[tokio::test]
    async fn an_idle_courier_is_asked_before_a_connection_is_opened() {
        let desk = desk(2);
        let (_seat, _) = desk.give(assignment(1), 20).unwrap();
        let (next, given) = tokio::join!(desk.next(LONG), async { desk.give(assignment(2), 20).is_none() });
        assert!(given);
        assert_eq!(bits(&next.unwrap()), bits(&assignment(2)));
        // One that went is not asked.
        assert!(desk.next(SOON).await.is_none() && desk.state().idle.is_empty());
        assert!(desk.give(assignment(3), 20).is_some());
    }

    #[tokio::test]
    async fn a_closed_desk_sends_its_couriers_home_and_gives_back_what_waits() {
        let desk = desk(1);
        let (_seat, _) = desk.give(assignment(1), 20).unwrap();
        let (next, ()) = tokio::join!(desk.next(LONG), async { assert!(desk.close().is_empty()) });
        assert!(next.is_none() && desk.is_closed());
        assert!(desk.next(LONG).await.is_none());
    }

    #[tokio::test]
    async fn a_large_message_is_not_taken_to_wait_behind_another() {
        let desk = desk(1);
        let (_seat, _) = desk.give(assignment(1), 20).unwrap();
        desk.give(assignment(2), 20);
        assert!(desk.next_ahead(99).is_none());
        assert_eq!(bits(&desk.next_ahead(100).unwrap()), bits(&assignment(2)));
    }

    #[tokio::test]
    async fn what_nobody_has_begun_can_be_taken_back_and_nothing_else() {
        let desk = desk(1);
        let (_seat, _) = desk.give(assignment(1), 20).unwrap();
        (2..=4).for_each(|n| drop(desk.give(assignment(n), 20)));
        let [first, ahead, begun, waiting] = [1, 2, 3, 4].map(|n| bits(&assignment(n)));
        assert_eq!([(); 2].map(|()| bits(&desk.next_ahead(100).unwrap())), [ahead, begun]);
        assert!(desk.begin(begun) && !desk.begin(begun));
        assert_eq!([first, ahead, begun, waiting].map(|id| desk.take_back(id)), [false, true, false, true]);
        assert!(!desk.begin(ahead) && desk.next_now().is_none());
    }
}
