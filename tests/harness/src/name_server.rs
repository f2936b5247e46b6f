//! A name server for tests, over UDP and TCP, that does as a file says: answers, is silent, holds back, refuses, lies.
//!
//! It is the test's own program once more, in the namespaces of a cluster: a thread cannot go there.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;
use std::{env, fs, thread};

use nix::unistd::Pid;

use crate::{Follower, until};

const ZONE: &str = "HARNESS_ZONE";
const ADDRESSES: &str = "HARNESS_NAME_SERVERS";
/// Seconds for which it is good that there is no such name, or no such record.
const NEGATIVE_TTL: u32 = 60;

/// One that runs; dropped, it is gone.
pub struct NameServer {
    process: Follower,
    zone: PathBuf,
}

/// A question that it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// `udp` or `tcp`.
    pub transport: String,
    /// Which of its addresses was asked.
    pub at: IpAddr,
    /// Its number: another, when it is asked anew.
    pub id: u16,
}

impl NameServer {
    /// Starts it in the namespaces of `of`, at port 53 of `addresses`. `entry` is the test of this program that calls
    /// [`run_if_asked`], by its path.
    #[track_caller]
    pub fn start(of: Pid, addresses: &str, zone: &Path, entry: &str) -> Self {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &of.to_string(), "--user", "--net", "--preserve-credentials", "--"])
            .arg(env::current_exe().expect("the program that runs"))
            .args(["--exact", entry, "--nocapture"])
            .env(ZONE, zone)
            .env(ADDRESSES, addresses);
        fs::write(zone, "").expect("a zone");
        let process = Follower::start(&mut command).expect("nsenter starts");
        process.stdout.find("ready");
        Self { process, zone: zone.to_owned() }
    }

    /// What it says from now on: a line has a name, a type, and either a TTL with addresses or what it does instead:
    /// `silent`, `held` until that is no longer so, `refused`, `cut SECONDS ADDRESS` (over UDP), `forged SECONDS ADDRESS` or
    /// `alias SECONDS NAME`.
    pub fn says(&self, zone: &str) {
        let new = self.zone.with_extension("new");
        fs::write(&new, zone).and_then(|()| fs::rename(&new, &self.zone)).expect("a zone");
    }

    /// What it was asked of a name and a type, in this order.
    pub fn asked(&self, name: &str, kind: &str) -> Vec<Question> {
        let what = format!(" {name} {kind}");
        let lines = self.process.stdout.lines();
        let questions = lines.iter().filter_map(|line| line.strip_prefix("asked ")?.strip_suffix(&what));
        let parsed = questions.map(|line| {
            let mut words = line.split(' ');
            let mut word = || words.next().expect("a word");
            let (transport, at, id) = (word().to_owned(), word(), word());
            Question { transport, at: at.parse().expect("an address"), id: id.parse().expect("a number") }
        });
        parsed.collect()
    }

    /// Waits until it was asked.
    #[track_caller]
    pub fn until_asked(&self, name: &str, kind: &str) -> Question {
        until(&format!("it is asked for {name}"), || self.asked(name, kind).first().cloned())
    }
}

/// Is the name server, if this process was started for that, until it is killed. Tells what it is asked by `tell`.
pub fn run_if_asked(tell: impl Fn(&str) + Send + Sync + 'static) {
    let (Some(zone), Ok(addresses)) = (env::var_os(ZONE), env::var(ADDRESSES)) else { return };
    let server = Arc::new(Server { zone: zone.into(), tell: Box::new(tell) });
    for address in addresses.split(' ') {
        let address = SocketAddr::new(address.parse().expect("an address"), 53);
        let (udp, tcp) = (UdpSocket::bind(address).expect("port 53"), TcpListener::bind(address).expect("port 53"));
        let (udp, of_udp, of_tcp) = (Arc::new(udp), server.clone(), server.clone());
        thread::spawn(move || of_udp.serve_udp(&udp, address.ip()));
        thread::spawn(move || of_tcp.serve_tcp(&tcp, address.ip()));
    }
    (server.tell)("ready");
    loop {
        thread::park();
    }
}

struct Server {
    zone: PathBuf,
    tell: Box<dyn Fn(&str) + Send + Sync>,
}

/// A question as it came.
struct Asked {
    id: u16,
    name: String,
    kind: u16,
    /// The bytes of its question.
    question: Vec<u8>,
}

impl Server {
    fn serve_udp(self: Arc<Self>, socket: &Arc<UdpSocket>, at: IpAddr) {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let Some(asked) = Asked::parse(&buffer[..length]) else { continue };
            let (server, socket) = (self.clone(), socket.clone());
            server.note("udp", at, &asked);
            thread::spawn(move || {
                let Some(rule) = server.rule(&asked) else { return };
                match rule.first().map(String::as_str) {
                    Some("cut") => send(&socket, &asked.answer(0x8380, 0, &[]), from),
                    Some("forged") => {
                        // Under another number; and as it should be, but from elsewhere.
                        let wrong = asked.answer(0x8180, 600, &["192.0.2.66".parse().expect("an address")]);
                        let other = UdpSocket::bind((at, 0)).expect("a port");
                        send(&other, &wrong, from);
                        send(&socket, &[&(!asked.id).to_be_bytes(), &wrong[2..]].concat(), from);
                        send(&socket, &asked.by(&rule[1..]), from);
                    }
                    _ => send(&socket, &asked.by(&rule), from),
                }
            });
        }
    }

    fn serve_tcp(self: Arc<Self>, listener: &TcpListener, at: IpAddr) {
        for stream in listener.incoming() {
            let (server, stream) = (self.clone(), stream.expect("a connection"));
            // It ends when the other side does.
            thread::spawn(move || server.converse(stream, at).ok());
        }
    }

    fn converse(&self, mut stream: TcpStream, at: IpAddr) -> io::Result<()> {
        loop {
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut message = vec![0; u16::from_be_bytes(length).into()];
            stream.read_exact(&mut message)?;
            let Some(asked) = Asked::parse(&message) else { continue };
            self.note("tcp", at, &asked);
            let Some(rule) = self.rule(&asked) else { continue };
            let skipped = usize::from(matches!(rule.first().map(String::as_str), Some("cut" | "forged")));
            let answer = asked.by(&rule[skipped..]);
            stream.write_all(&(answer.len() as u16).to_be_bytes())?;
            stream.write_all(&answer)?;
        }
    }

    fn note(&self, transport: &str, at: IpAddr, asked: &Asked) {
        (self.tell)(&format!("asked {transport} {at} {} {} {}", asked.id, asked.name, asked.kind()));
    }

    /// What is to be done: nothing at all; or words, none of them for a name that is not there.
    fn rule(&self, asked: &Asked) -> Option<Vec<String>> {
        loop {
            let zone = fs::read_to_string(&self.zone).expect("a zone");
            let lines = zone.lines().map(|line| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
            let of_name: Vec<_> = lines.filter(|words| words.first() == Some(&asked.name)).collect();
            let rule = of_name.iter().find(|words| words[1] == asked.kind()).map(|words| words[2..].to_vec());
            let none = || if of_name.is_empty() { Vec::new() } else { vec!["nothing".to_owned()] };
            let rule = rule.unwrap_or_else(none);
            match rule.first().map(String::as_str) {
                Some("silent") => return None,
                Some("held") => thread::sleep(Duration::from_millis(5)),
                _ => return Some(rule),
            }
        }
    }
}

fn send(socket: &UdpSocket, message: &[u8], to: SocketAddr) {
    // Who asked may be gone.
    let _ = socket.send_to(message, to);
}

impl Asked {
    fn parse(message: &[u8]) -> Option<Self> {
        let (mut name, mut at) = (Vec::new(), 12);
        loop {
            let length = usize::from(*message.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            name.push(String::from_utf8_lossy(message.get(at..at + length)?).into_owned());
            at += length;
        }
        let kind = u16::from_be_bytes(message.get(at..at + 2)?.try_into().ok()?);
        let id = u16::from_be_bytes(message[..2].try_into().ok()?);
        Some(Self { id, name: name.join("."), kind, question: message.get(12..at + 4)?.to_vec() })
    }

    fn kind(&self) -> String {
        match self.kind {
            1 => "A".to_owned(),
            28 => "AAAA".to_owned(),
            other => other.to_string(),
        }
    }

    /// The answer by a rule: a TTL and addresses, or that there is none.
    fn by(&self, rule: &[String]) -> Vec<u8> {
        match rule {
            [] => self.answer(0x8183, NEGATIVE_TTL, &[]),
            [word] if word == "refused" => self.answer(0x8185, 0, &[]),
            [word] if word == "nothing" => self.answer(0x8180, NEGATIVE_TTL, &[]),
            [word, ttl, name] if word == "alias" => {
                let labels = name.split('.').flat_map(|label| [&[label.len() as u8], label.as_bytes()].concat());
                let name: Vec<u8> = labels.chain([0]).collect();
                self.records(0x8180, ttl.parse().expect("a TTL"), &[(5, name)])
            }
            [ttl, addresses @ ..] => {
                let addresses: Vec<_> = addresses.iter().map(|text| text.parse().expect("an address")).collect();
                self.answer(0x8180, ttl.parse().expect("a TTL"), &addresses)
            }
        }
    }

    fn answer(&self, flags: u16, ttl: u32, addresses: &[IpAddr]) -> Vec<u8> {
        let records = addresses.iter().map(|address| match address {
            IpAddr::V4(address) => (1, address.octets().to_vec()),
            IpAddr::V6(address) => (28, address.octets().to_vec()),
        });
        self.records(flags, ttl, &records.collect::<Vec<_>>())
    }

    /// With these flags, and records by type; or with a SOA record if there are none.
    fn records(&self, flags: u16, ttl: u32, records: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let has_soa = records.is_empty() && ttl > 0;
        let counts = [self.id, flags, 1, records.len() as u16, u16::from(has_soa), 0];
        let mut message: Vec<u8> = counts.iter().flat_map(|count| count.to_be_bytes()).collect();
        message.extend(&self.question);
        let mut record = |name: &[u8], kind: u16, data: &[u8]| {
            message.extend(name);
            message.extend([kind, 1].iter().flat_map(|number| number.to_be_bytes()));
            message.extend(ttl.to_be_bytes());
            message.extend((data.len() as u16).to_be_bytes());
            message.extend(data);
        };
        for (kind, data) in records {
            // The name is that of the question.
            record(&[0xc0, 12], *kind, data);
        }
        if has_soa {
            let times = [1, 60, 60, 60, ttl].map(u32::to_be_bytes).concat();
            record(&[0], 6, &[&[0, 0], times.as_slice()].concat());
        }
        message
    }
}
