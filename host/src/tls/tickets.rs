//! Session tickets that any worker can open, as all have the same keys. A ticket is the name of its key, a nonce, and the
//! session, sealed by ChaCha20-Poly1305.

use std::fmt;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::error::Unspecified;
use ring::rand::{SecureRandom, SystemRandom};
use rustls::server::ProducesTickets;
use serde::{Deserialize, Serialize};

use super::rotation::TICKET_LIFETIME;

const NAME: usize = 16;
const SECRET: usize = 32;
/// Bytes of a ticket, at most. Without a client's certificate in it, one has some hundred.
const MAX_TICKET: usize = 4 * 1024;

/// Seals tickets, and is known by its name.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TicketKey {
    name: [u8; NAME],
    secret: [u8; SECRET],
}

/// Without the secret.
impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TicketKey({})", data_encoding::HEXLOWER.encode(&self.name))
    }
}

impl TicketKey {
    /// A new one. Fails if the kernel gives no random bytes.
    pub(crate) fn random() -> Result<Self, Unspecified> {
        let (mut key, random) = (Self { name: [0; NAME], secret: [0; SECRET] }, SystemRandom::new());
        random.fill(&mut key.name)?;
        random.fill(&mut key.secret)?;
        Ok(key)
    }
}

/// Seals with the first key, and opens with any.
pub(super) struct Ticketer {
    keys: Vec<([u8; NAME], LessSafeKey)>,
    random: SystemRandom,
}

impl fmt::Debug for Ticketer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticketer").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

impl Ticketer {
    pub(super) fn new(keys: &[TicketKey]) -> Result<Self, Unspecified> {
        let mut named = Vec::with_capacity(keys.len());
        for TicketKey { name, secret } in keys {
            named.push((*name, LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, secret)?)));
        }
        Ok(Self { keys: named, random: SystemRandom::new() })
    }

    fn seal(&self, session: &[u8]) -> Option<Vec<u8>> {
        let (name, key) = self.keys.first()?;
        // Random, as the workers do not agree on a counter: fine for 2^32 tickets of one key.
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).ok()?;
        let mut ticket = [&name[..], &nonce, session].concat();
        let sealed = &mut ticket[NAME + NONCE_LEN..];
        let tag = key.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(name), sealed).ok()?;
        ticket.extend_from_slice(tag.as_ref());
        (ticket.len() <= MAX_TICKET).then_some(ticket)
    }

    fn open(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        if ticket.len() > MAX_TICKET {
            return None;
        }
        let (name, rest) = ticket.split_at_checked(NAME)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        // Names are no secret: they stand in every ticket.
        let (_, key) = self.keys.iter().find(|(known, _)| known == name)?;
        let mut session = sealed.to_vec();
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let length = key.open_in_place(nonce, Aad::from(name), &mut session).ok()?.len();
        session.truncate(length);
        Some(session)
    }
}

impl ProducesTickets for Ticketer {
    fn enabled(&self) -> bool {
        !self.keys.is_empty()
    }

    fn lifetime(&self) -> u32 {
        TICKET_LIFETIME.as_secs() as u32
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.open(cipher)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys<const N: usize>() -> [TicketKey; N] {
        std::array::from_fn(|_| TicketKey::random().unwrap())
    }

    fn ticketer(keys: &[TicketKey]) -> Ticketer {
        Ticketer::new(keys).unwrap()
    }

    #[test]
    fn what_one_worker_seals_another_opens() {
        let [current, previous, next] = keys();
        let one = ticketer(&[current, previous, next]);
        // Another may have heard of the next key, or not yet.
        for other in [&[current, previous, next][..], &[next, current], &[previous, current]] {
            for length in [0, 1, 300, MAX_TICKET - NAME - NONCE_LEN - 16] {
                let session = vec![7; length];
                let ticket = one.seal(&session).unwrap();
                assert_eq!(ticketer(other).open(&ticket), Some(session), "{length}");
            }
        }
        assert_ne!(one.seal(b"a"), one.seal(b"a"));
        assert_eq!(one.seal(&[7; MAX_TICKET]), None);
        assert!(!ticketer(&[]).enabled() && ticketer(&[]).seal(b"a").is_none());
    }

    #[test]
    fn a_ticket_that_is_not_ours_is_not_opened() {
        let [current, previous, gone] = keys();
        let ours = ticketer(&[current, previous]);
        let ticket = ours.seal(b"a session").unwrap();
        for at in 0..ticket.len() {
            let mut damaged = ticket.clone();
            damaged[at] ^= 1;
            assert_eq!(ours.open(&damaged), None, "damaged at {at}");
            assert_eq!(ours.open(&ticket[..at]), None, "cut at {at}");
        }
        assert_eq!(ours.open(&[&ticket[..], b"x"].concat()), None);
        assert_eq!(ours.open(&ticketer(&[gone]).seal(b"a session").unwrap()), None);
        assert_eq!(ours.open(&[0; MAX_TICKET + 1]), None);
        // A name alone opens nothing.
        let forged = TicketKey { secret: gone.secret, ..current };
        assert_eq!(ours.open(&ticketer(&[forged]).seal(b"a session").unwrap()), None);
    }
}
