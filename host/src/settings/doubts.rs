//! What can be configured and hardly is meant. It is not refused, since a file that served on one machine must serve on
//! another; but it is said, with the flags' names.

use std::time::Duration;

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use super::Options;
use super::limits::request_timeout;

/// A line for each.
pub(super) fn of(options: &Options, workers: u32) -> Vec<String> {
    let cpus = options.pin_cpus.then(cpus).flatten();
    let somaxconn = options.backlog.and_then(|_| somaxconn());
    let all = [pinning(workers, cpus), queue(options, somaxconn), trust(options)];
    all.into_iter().flatten().chain(cuts(options, request_timeout(options))).collect()
}

fn pinning(workers: u32, cpus: Option<u32>) -> Option<String> {
    let cpus = cpus.filter(|&cpus| workers > cpus)?;
    Some(format!(
        "--pin-cpus with --workers {workers}, but this process may use {cpus} {}, so some workers share a CPU and \
         cannot move to another; use at most {cpus}, or leave out --pin-cpus",
        if cpus == 1 { "CPU" } else { "CPUs" }
    ))
}

fn queue(options: &Options, somaxconn: Option<u32>) -> Option<String> {
    let (backlog, somaxconn) = (options.backlog?.get(), somaxconn?);
    (backlog > somaxconn).then(|| {
        format!("--backlog {backlog} is over the kernel's limit, so {somaxconn} is used; raise net.core.somaxconn")
    })
}

fn trust(options: &Options) -> Option<String> {
    let everybody = options.trust_proxy.iter().find(|proxy| proxy.is_everybody())?;
    Some(format!(
        "--trust-proxy {everybody} is everybody, so each client can say that it is another, in x-forwarded-for and the \
         like; name the networks of your proxies alone"
    ))
}

/// Requests that may be cut although they are within their time.
fn cuts(options: &Options, request_timeout: Duration) -> impl Iterator<Item = String> {
    let of = move |flag: &str, what: &str, given: Option<super::values::Span>| {
        let given = given.filter(|given| given.0 < request_timeout)?.0;
        let [given, allowed] = [given, request_timeout].map(humantime::format_duration);
        Some(format!(
            "{flag} {given} is shorter than --request-timeout {allowed}, so {what} may cut requests that still have \
             time"
        ))
    };
    let drain = of("--drain-timeout", "a reload", options.drain_timeout);
    let stop = of("--shutdown-timeout", "a stop", options.shutdown_timeout);
    drain.into_iter().chain(stop)
}

fn cpus() -> Option<u32> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).ok()?;
    Some((0..CpuSet::count()).filter(|&cpu| allowed.is_set(cpu) == Ok(true)).count() as u32)
}

fn somaxconn() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/net/core/somaxconn").ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn what_is_hardly_meant_is_said_with_its_flag() {
        assert_eq!(pinning(4, Some(4)), None);
        assert!(pinning(5, Some(4)).unwrap().contains("--workers 5, but this process may use 4 CPUs"));
        let backlog = |backlog| Options { backlog: NonZeroU32::new(backlog), ..Options::default() };
        assert_eq!(queue(&backlog(4096), Some(4096)), None);
        assert!(queue(&backlog(5000), Some(4096)).unwrap().starts_with("--backlog 5000"));
        let trust =
            |network: &str| trust(&Options { trust_proxy: vec![network.parse().unwrap()], ..Options::default() });
        assert_eq!([trust("10.0.0.0/8"), trust("unix")], [None, None]);
        assert!(trust("0.0.0.0/0").unwrap().contains("--trust-proxy 0.0.0.0/0 is everybody"));
        let times = |drain: &str, stop: &str| Options {
            drain_timeout: drain.parse().ok(),
            shutdown_timeout: stop.parse().ok(),
            ..Options::default()
        };
        let cuts = |options: Options| cuts(&options, Duration::from_secs(30)).collect::<Vec<_>>();
        assert_eq!(cuts(times("30s", "31s")), [""; 0]);
        assert_eq!(cuts(Options::default()), [""; 0]);
        let both = cuts(times("29s", "5s"));
        assert!(both[0].contains("--drain-timeout 29s is shorter than --request-timeout 30s"), "{both:?}");
        assert!(both[1].contains("--shutdown-timeout 5s is shorter"), "{both:?}");
    }
}
