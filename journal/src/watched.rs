//! How a primary stands (FORMAT.md section 4.13). Says nothing about any message.

use crate::codec::{Malformed, Put, Take};
use restante_envelope::{RouteName, Timestamp};
use restante_ledger::{PrimaryState, Watched};

pub(crate) fn encode(watched: &Watched) -> Vec<u8> {
    let mut put = Put::default();
    put.u64(watched.at.unix_ms());
    put.text16(watched.route.as_str());
    put.u8(match watched.state {
        PrimaryState::Up => 1,
        PrimaryState::Suspect => 2,
        PrimaryState::Down => 3,
        PrimaryState::Recovering => 4,
        PrimaryState::Maintenance => 5,
    });
    put.text16(&watched.why);
    put.count(watched.up.len());
    for (from, to) in &watched.up {
        put.u64(from.unix_ms());
        put.u64(to.unix_ms());
    }
    put.0
}

pub(crate) fn decode(take: &mut Take<'_>) -> Result<Watched, Malformed> {
    let (at, route) = (Timestamp::from_unix_ms(take.u64()?), RouteName::new(take.text16()?));
    let state = match take.u8()? {
        1 => PrimaryState::Up,
        2 => PrimaryState::Suspect,
        3 => PrimaryState::Down,
        4 => PrimaryState::Recovering,
        5 => PrimaryState::Maintenance,
        _ => return Err(Malformed),
    };
    let why = take.text16()?.to_owned();
    let time = |t: &mut Take<'_>| t.u64().map(Timestamp::from_unix_ms);
    let up = take.list16(|t| Ok((time(t)?, time(t)?)))?;
    Ok(Watched { route, at, state, why, up })
}
