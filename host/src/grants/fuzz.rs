//! Grants: what is granted is permitted, and nothing beside it.

use super::*;
use crate::fuzz;

/// One of each kind, and what lies beside.
const ADDRESSES: &str = "0.0.0.0 10.0.0.5 100.64.0.1 127.0.0.1 127.9.9.9 168.63.129.16 169.254.169.254 172.16.0.1 \
    192.168.1.1 198.18.0.1 224.0.0.1 255.255.255.255 1.1.1.1 8.8.8.8 :: ::1 ::127.0.0.1 ::ffff:127.0.0.1 \
    ::ffff:10.0.0.5 ::ffff:1.1.1.1 64:ff9b::7f00:1 2001::1 2002:7f00:1::1 2606:4700::1 fc00::1 fd00:ec2::254 fe80::1 \
    ff02::1";

#[test]
fn allow_host() {
    fuzz::text("allow-host", |text| {
        let Ok(grant) = text.parse::<AllowHost>() else { return };
        assert_eq!(grant.to_string().parse(), Ok(grant.clone()));
        let json = serde_json::to_string(&grant).unwrap();
        assert_eq!(serde_json::from_str::<AllowHost>(&json).unwrap(), grant);

        let destination = inside(&grant);
        let grants = Grants(vec![grant]);
        assert!(grants.permits(&destination), "{destination:?}");
        for address in addresses() {
            permits_no_more_than_it_says(&grants, &destination, address);
        }
    });
}

#[test]
fn allow_connect() {
    fuzz::text("allow-connect", |text| {
        let Ok(grant) = text.parse::<AllowConnect>() else { return };
        assert_eq!(grant.to_string().parse(), Ok(grant.clone()));
        let json = serde_json::to_string(&grant).unwrap();
        assert_eq!(serde_json::from_str::<AllowConnect>(&json).unwrap(), grant);

        // What it lets pass is what a grant of requests of the same text does, by whom it is asked for.
        let text = grant.to_string();
        let request: AllowHost = format!("http://{text}").parse().unwrap();
        let (granted, of_requests) = (ConnectGrants::from(vec![grant]), Grants(vec![request]));
        for (address, port) in addresses().flat_map(|address| [1, 80, 5432].map(|port| (address, port))) {
            let uri = format!("http://{}", std::net::SocketAddr::new(address, port));
            let asked = Destination::of(&uri.parse().unwrap()).unwrap();
            assert_eq!(granted.permit(address, port), of_requests.permits(&asked), "{text} {uri}");
            for name in ["localhost", "db.example.com", "example.com"] {
                let asked = Destination::of(&format!("http://{name}:{port}").parse().unwrap()).unwrap();
                let is_permitted = of_requests.permits_address(&asked, address);
                assert_eq!(granted.permit_by_name(name, address, port), is_permitted, "{text} {name} {address}");
                assert!(!is_permitted || granted.first_for_name(name).is_some() && granted.lead_to(name, address));
            }
        }
    });
}

/// Lines: what is asked for, where that leads, and any number of grants.
#[test]
fn outbound() {
    fuzz::text("outbound", |text| {
        let mut lines = text.split('\n');
        let Some(Ok(uri)) = lines.next().map(str::parse) else { return };
        let Ok(destination) = Destination::of(&uri) else { return };
        let written = format!("{}://{}", destination.scheme.as_str(), destination.authority());
        assert_eq!(Destination::of(&written.parse().unwrap()).as_ref(), Ok(&destination));

        let flag = destination.flag();
        let flag: AllowHost = flag.strip_prefix("--allow-host ").unwrap().parse().unwrap();
        assert!(Grants(vec![flag]).permits(&destination));

        let address = lines.next().and_then(|line| line.parse().ok());
        let grants = Grants(lines.filter_map(|line| line.parse().ok()).collect());
        for address in address.into_iter().chain(addresses()) {
            permits_no_more_than_it_says(&grants, &destination, address);
        }
    });
}

#[test]
fn dir() {
    fuzz::text("dir", |text| {
        let Ok(dir) = text.parse::<DirGrant>() else { return };
        assert_eq!(dir.to_string(), text);
        assert_eq!(serde_json::from_str::<DirGrant>(&serde_json::to_string(&dir).unwrap()).unwrap(), dir);
        assert!(!dir.host.as_os_str().is_empty());
        assert!(dir.guest == "/" || dir.guest.split('/').skip(1).all(|name| !matches!(name, "" | "." | "..")));
        assert!(dir.guest.starts_with('/') && !dir.guest.contains('\0'));
        // Read-only is nothing that a slip can lose.
        assert_eq!(dir.access == Access::ReadOnly, text.ends_with(":ro"));
        assert!(check_dirs(&[dir.clone(), dir]).is_err());
    });
}

fn addresses() -> impl Iterator<Item = IpAddr> {
    ADDRESSES.split(' ').filter(|text| !text.is_empty()).map(|text| text.parse().unwrap())
}

/// A destination that `grant` says it is for.
fn inside(grant: &AllowHost) -> Destination {
    let host = match &grant.hosts {
        Hosts::Name(name) => name.clone(),
        Hosts::Below(parent) => format!("below.{parent}"),
        Hosts::Network(IpNet::V4(network)) => network.network().to_string(),
        Hosts::Network(IpNet::V6(network)) => format!("[{}]", network.network()),
    };
    let port = match grant.ports {
        Ports::Any => 1,
        Ports::Only(port) => port,
    };
    let uri = format!("{}://{host}:{port}/path", grant.scheme.as_str());
    Destination::of(&uri.parse().unwrap()).unwrap()
}

fn permits_no_more_than_it_says(grants: &Grants, destination: &Destination, address: IpAddr) {
    if !grants.permits_address(destination, address) {
        return;
    }
    assert!(grants.permits(destination));
    let address = address.to_canonical();
    let says_so = grants.0.iter().any(|grant| {
        let port =
            matches!(grant.ports, Ports::Any) || matches!(grant.ports, Ports::Only(port) if port == destination.port);
        port && grant.scheme == destination.scheme
            && matches!(&grant.hosts, Hosts::Network(net) if net.contains(&address))
    });
    match &destination.host {
        Host::Address(literal) => assert!(says_so && *literal == address, "{grants:?} {destination:?} {address}"),
        Host::Name(name) => {
            let here = address.is_loopback() && (name == "localhost" || name.ends_with(".localhost"));
            assert!(says_so || here || special(address).is_none(), "{grants:?} {destination:?} {address}");
        }
    }
}
