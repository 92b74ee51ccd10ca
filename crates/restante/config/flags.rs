//! The flags of `serve`: every error of the command line, together.
//!
//! Reads no file; what a flag leaves out, the file or a default says.

use super::address::{self, HostPort};
use super::routes;
use super::{Config, Flags, Route};
use restante_envelope::DomainName;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;

/// The flags that were given, checked.
pub(super) struct Given {
    pub(super) routes: Vec<Route>,
    pub(super) listen: Vec<SocketAddr>,
    pub(super) data: Option<PathBuf>,
    pub(super) admin: Option<SocketAddr>,
    pub(super) hostname: Option<String>,
}

/// Checks each flag by itself.
pub(super) fn check(flags: &Flags) -> Result<Given, Vec<String>> {
    let mut errors = Vec::new();
    let routes = all_routes(&flags.routes, &mut errors);
    let mut address = |flag: &str, text: &String| {
        address::listen_address(text).map_err(|why| errors.push(format!("--{flag} `{text}`: {why}"))).ok()
    };
    let listen: Vec<_> = flags.listen.iter().filter_map(|text| address("listen", text)).collect();
    let admin = flags.admin.as_ref().and_then(|text| address("admin", text));
    let hostname = flags.hostname.as_ref().and_then(|text| {
        let name = hostname(text).map_err(|why| errors.push(format!("--hostname `{text}`: {why}")));
        name.ok()
    });
    if errors.is_empty() {
        Ok(Given { routes, listen, data: flags.data.clone(), admin, hostname })
    } else {
        Err(errors)
    }
}

/// Checks the flags against what they and the file gave together.
pub(super) fn check_against(given: &Given, config: &Config) -> Result<(), Vec<String>> {
    let mut errors = Vec::new();
    for primary in given.routes.iter().flat_map(|route| &route.primary) {
        if let Some(ours) = primary.leads_back_to(&config.hostname, &config.listen) {
            errors.push(format!("--route: the primary {primary} is ourselves: we listen on {ours}"));
        }
    }
    let mut ports = BTreeSet::new();
    let all = config.listen.iter().chain(&config.admin_http);
    for twice in all.filter(|address| address.port() != 0 && !ports.insert(**address)) {
        // What the file alone asks for twice was refused there: here a flag is part of it.
        errors.push(format!("--listen, --admin: {twice} is there twice, counting [smtp] listen and [admin] http"));
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// A host's own name: what greets clients must be a domain name (RFC 5321 section 4.1.1.1).
pub(crate) fn hostname(text: &str) -> Result<String, String> {
    match DomainName::parse(text) {
        Ok(name) if !address::looks_like_ipv4(&name) => Ok(name.as_str().to_owned()),
        _ => Err("this is not a host name, such as mx2.example.net".to_owned()),
    }
}

fn all_routes(texts: &[String], errors: &mut Vec<String>) -> Vec<Route> {
    let mut seen = BTreeSet::new();
    let mut routes: Vec<Route> = Vec::new();
    for text in texts {
        let route = match route(text) {
            Ok(route) => route,
            Err(why) => {
                errors.push(format!("--route `{text}`: {why}"));
                continue;
            }
        };
        for domain in route.domains.iter().filter(|domain| !seen.insert((*domain).clone())) {
            errors.push(format!("--route `{text}`: the domain {domain} is there twice"));
        }
        // Of `x.test` and `*.x.test`: their domains differ, and the name is of the domain alone.
        if let Some(same) =
            routes.iter().find(|other| other.name == route.name && other.domains.first() != route.domains.first())
        {
            let name = &same.name;
            errors.push(format!(
                "--route `{text}`: another route has the name {name}: begin with another domain, or name both in a file"
            ));
        }
        routes.push(route);
    }
    routes
}

/// `D[,D...]=HOST[:PORT][,HOST[:PORT]...]`
fn route(text: &str) -> Result<Route, String> {
    let form = "a route is DOMAIN[,DOMAIN...]=HOST[:PORT][,HOST[:PORT]...]";
    let (domains, primary) = text.split_once('=').ok_or(form)?;
    let domains: Vec<_> = domains.split(',').map(|domain| routes::domain(domain.trim())).collect::<Result<_, _>>()?;
    let next_hop = |text: &str| text.trim().parse::<HostPort>().map_err(|why| why.to_string());
    let primary: Vec<_> = primary.split(',').map(next_hop).collect::<Result<_, _>>()?;
    let name = domains.first().ok_or(form)?.name().as_str().to_owned();
    Ok(Route::new(name, domains, primary, None, Vec::new()))
}
