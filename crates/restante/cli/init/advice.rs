//! What DNS and the primary need, as text to paste. IPV4 and IPV6 stand for our addresses: nobody but DNS knows them, and
//! behind address translation we do not either.

/// The lines for the zones.
pub(super) fn dns(hostname: &str, domains: &[String]) -> Vec<String> {
    let mut lines: Vec<String> = domains
        .iter()
        .map(|domain| format!("{domain}.  MX  20  {hostname}.    ; any number higher than the primary's"))
        .collect();
    lines.push(format!("{hostname}.  A     IPV4"));
    lines.push(format!("{hostname}.  AAAA  IPV6"));
    lines.push(format!("; PTR of IPV4 and of IPV6: {hostname}.    (set where the address was rented)"));
    lines
}

/// What is easily forgotten beside the records.
pub(super) fn remarks(hostname: &str) -> [String; 2] {
    [
        "SPF: no change. Restante sends to the primary alone, and never in the name of your domains.".to_owned(),
        format!(
            "MTA-STS: if a domain has a policy, add `mx: {hostname}` to it and raise the id of its TXT record; senders \
             that go by the policy pass us by otherwise. `mode: enforce` needs a certificate for {hostname} in [tls]."
        ),
    ]
}

/// What to allow on the primary, by its software.
pub(super) fn primary(hostname: &str) -> [(&'static str, String); 3] {
    [("Postfix", postfix(hostname)), ("Rspamd", rspamd(hostname)), ("Exim", exim(hostname))]
}

/// See postconf(5), access(5), postscreen(8). Not `mynetworks`: that would let us relay to anywhere.
fn postfix(hostname: &str) -> String {
    format!(
        "\
# /etc/postfix/restante_access     ({hostname})
IPV4/32    OK
IPV6/128   OK

# /etc/postfix/restante_postscreen
IPV4/32    permit
IPV6/128   permit

# /etc/postfix/main.cf
# No limits on connections, messages and recipients per client:
smtpd_client_event_limit_exceptions = $mynetworks, IPV4, [IPV6]
# Past postscreen's tests:
postscreen_access_list = permit_mynetworks, cidr:/etc/postfix/restante_postscreen
# Behind reject_unauth_destination, and before SPF, greylisting and blocklists (check_policy_service, reject_rbl_client).
# If those stand in other smtpd_..._restrictions, put the check_client_access line in front of them there too.
smtpd_recipient_restrictions =
    permit_mynetworks, permit_sasl_authenticated, reject_unauth_destination,
    reject_unlisted_recipient,
    check_client_access cidr:/etc/postfix/restante_access,
    # ... what stands there now

# Milters that check SPF or DMARC by the client's address (not Rspamd with the rule below), since Postfix 3.2:
#   smtpd_milter_maps = cidr:/etc/postfix/restante_milters     with lines such as: IPV4/32 DISABLE
"
    )
}

/// See the external_relay module: it takes the sender's address from our Received header, so every check is about the real
/// sender. A whitelist would let spam in by the side door.
fn rspamd(hostname: &str) -> String {
    format!(
        "\
# /etc/rspamd/local.d/external_relay.conf     ({hostname}; strategy ip_map needs Rspamd 3.6 or newer)
# SPF, DMARC and blocklists then see the client that came to us, as our Received header names it.
rules {{
  \"EXTERNAL_RELAY_RESTANTE\" {{
    strategy = \"ip_map\";
    ip_map = [\"IPV4\", \"IPV6\"];
  }}
}}
# What Rspamd rejects stays on hold with us and bounces to nobody.
"
    )
}

/// See the specification's chapters on access control lists and on the main configuration.
fn exim(hostname: &str) -> String {
    format!(
        "\
# Main section     ({hostname})
hostlist restante = <; IPV4 ; IPV6
# No ratelimit of MAIL and RCPT for us, if smtp_ratelimit_hosts is set:
#   smtp_ratelimit_hosts = !+restante : *

# In the ACL named by acl_smtp_rcpt, before SPF, greylisting, `ratelimit` and `dnslists`:
  accept  hosts   = +restante
          domains = +local_domains : +relay_to_domains
          endpass
          verify  = recipient
"
    )
}
