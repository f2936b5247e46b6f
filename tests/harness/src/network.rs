//! Machines of a test's own: network namespaces with an address each, joined by a bridge in a further one. Nothing in them
//! reaches the machine's own networks. Sockets in folders work across them, so a test asks HAProxy, the admin server and the
//! control socket without entering any.

#![expect(clippy::print_stdout, reason = "tests tell what they skipped")]

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::cluster::Follower;
use crate::tools::Tool;
use crate::until;

/// Where the bridge is, and where the balancer is to be.
const MIDDLE: Ipv4Addr = Ipv4Addr::new(10, 83, 0, 1);
/// No machine has it.
const NOBODYS_HARDWARE_ADDRESS: &str = "02:00:00:00:ff:ff";

/// Machines joined by a bridge; dropped, all is gone. What was started in them must be dropped before.
pub struct Network {
    /// With the bridge.
    pub middle: Machine,
    /// Those that were asked for.
    pub machines: Vec<Machine>,
}

/// A network namespace: it lives as long as a process that sleeps in it.
pub struct Machine {
    /// Its address in the network.
    pub address: Ipv4Addr,
    /// Its end of the bridge, by name.
    port: String,
    sleeper: Follower,
}

impl Network {
    /// None where namespaces are not allowed, which is said.
    pub fn start(machines: u8) -> Option<Self> {
        for name in ["ip", "unshare", "nsenter", "setpriv"] {
            if Tool::find(name).is_none() {
                println!("skipped: there is no {name}");
                return None;
            }
        }
        let tried = Command::new("unshare").args(["--net", "ip", "link", "add", "bridge", "type", "bridge"]).output();
        if !tried.is_ok_and(|tried| tried.status.success()) {
            println!("skipped: there can be no bridge in a network namespace");
            return None;
        }
        let middle = Machine::start(MIDDLE, String::new());
        middle.ip("link add bridge type bridge");
        middle.ip(&format!("address add {MIDDLE}/24 dev bridge"));
        middle.ip("link set bridge up");
        let mut network = Self { middle, machines: Vec::new() };
        for number in 1..=machines {
            network.add(number);
        }
        Some(network)
    }

    fn add(&mut self, number: u8) {
        let [a, b, c, _] = MIDDLE.octets();
        let machine = Machine::start(Ipv4Addr::new(a, b, c, 10 + number), format!("port{number}"));
        let (port, pid) = (&machine.port, machine.sleeper.pid());
        self.middle.ip(&format!("link add {port} type veth peer name eth0 netns {pid}"));
        self.middle.ip(&format!("link set {port} master bridge up"));
        machine.ip(&format!("address add {}/24 dev eth0", machine.address));
        machine.ip("link set eth0 up");
        self.machines.push(machine);
    }

    /// Takes a machine's cable out: what is sent to it or by it is lost, and nobody is told.
    pub fn cut_off(&self, machine: &Machine) {
        self.middle.ip(&format!("link set {} nomaster", machine.port));
    }

    /// Puts it in again.
    pub fn join(&self, machine: &Machine) {
        self.middle.ip(&format!("link set {} master bridge", machine.port));
    }
}

impl Machine {
    fn start(address: Ipv4Addr, port: String) -> Self {
        // It ends with the test, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--net", "sleep", "infinity"]).stdin(Stdio::null());
        let sleeper = Follower::start(&mut command).expect("setpriv starts");
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let (pid, own) = (sleeper.pid().to_string(), namespace("self"));
        until("it has a network of its own", || namespace(&pid).filter(|it| Some(it) != own.as_ref()));
        let machine = Self { address, port, sleeper };
        machine.ip("link set lo up");
        machine
    }

    /// What has a command started on this machine: to be put before it.
    pub fn enter(&self) -> [String; 2] {
        ["nsenter".into(), format!("--net=/proc/{}/ns/net", self.sleeper.pid())]
    }

    /// A command that runs on this machine.
    pub fn command(&self, program: impl Into<PathBuf>) -> Command {
        let [enter, namespace] = self.enter();
        let mut command = Command::new(enter);
        command.arg(namespace).arg(program.into());
        command
    }

    /// Makes an address unreachable from here, without anybody being told: a partition between two.
    pub fn loses(&self, other: Ipv4Addr) {
        self.ip(&format!("neighbour replace {other} lladdr {NOBODYS_HARDWARE_ADDRESS} dev eth0 nud permanent"));
    }

    /// Ends that.
    pub fn finds(&self, other: Ipv4Addr) {
        self.ip(&format!("neighbour delete {other} dev eth0"));
    }

    /// Runs `ip ARGS` here. Panics if that fails.
    #[track_caller]
    fn ip(&self, args: &str) {
        self.run("ip", args);
    }

    /// Runs a program here to its end, with arguments separated by spaces, and returns what it printed. Panics if it fails.
    #[track_caller]
    pub fn run(&self, program: &str, args: &str) -> String {
        let done = self.command(program).args(args.split(' ')).output().expect("nsenter starts");
        let errors = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{program} {args}: {errors}");
        String::from_utf8_lossy(&done.stdout).into_owned()
    }
}
