//! The client's side of STARTTLS, with the daemon's own certificate as the root.

use super::{Client, Daemon};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

/// A connection, whatever protects it.
pub trait Wire: Read + Write {}
impl<T: Read + Write> Wire for T {}

/// A configuration that trusts the daemon's self-signed certificate.
pub fn trusting(daemon: &Daemon) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(daemon.data.join("tls-self-signed.pem")).unwrap()).unwrap();
    Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

/// A connection that did STARTTLS, to the server that calls itself `name`. Inside nothing has been said yet.
pub fn encrypted(
    daemon: &Daemon,
    name: &'static str,
    config: &Arc<ClientConfig>,
) -> StreamOwned<ClientConnection, TcpStream> {
    let mut client = Client::ehlo(daemon.smtp);
    assert_eq!(client.command("STARTTLS").unwrap().code, 220);
    let tls = ClientConnection::new(Arc::clone(config), name.try_into().unwrap()).unwrap();
    StreamOwned::new(tls, client.into_stream())
}
