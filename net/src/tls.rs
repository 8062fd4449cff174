//! TLS 1.3 with libp2p certificates: one ed25519 identity proves itself in both directions, under either ALPN.
//!
//! The certificate format is libp2p's (specs/tls); the rustls configurations are ours: the suites of `cipher`, the server's
//! order wins, no 0-RTT, no resumption (each connection proves its peer anew), no key log, no TLS 1.2.

use crate::{ALPN_LIBP2P, ALPN_SHOAL, BindError, Keypair, PeerId, cipher, proven::Proven};
use libp2p_tls::certificate;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, PeerIncompatible, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature_with_raw_key},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};
use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

/// TLS needs a name; libp2p ignores it, and so do we. It says nothing of the peer, since it goes out in the clear.
pub(crate) const SERVER_NAME: &str = "l";

/// The certificate and the two configurations that everything else is derived from.
pub(crate) struct Tls {
    provider: Arc<CryptoProvider>,
    identity: Arc<Identity>,
    proven: Arc<Proven>,
    pub(crate) server: Arc<QuicServerConfig>,
}

impl Tls {
    pub(crate) fn new(keypair: &Keypair) -> Result<Self, BindError> {
        let broken = |error: &dyn std::fmt::Display| BindError::Certificate(error.to_string());
        let provider = Arc::new(cipher::provider());
        let (certificate, key) = certificate::generate(keypair).map_err(|e| broken(&e))?;
        let key = provider.key_provider.load_private_key(key).map_err(|e| broken(&e))?;
        let identity = Arc::new(Identity(Arc::new(CertifiedKey::new(vec![certificate], key))));
        let proven = Arc::<Proven>::default();

        let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])
            .map_err(|e| broken(&e))?
            .with_client_cert_verifier(Arc::new(Verifier::anyone(proven.clone())))
            .with_cert_resolver(identity.clone());
        server.alpn_protocols = vec![ALPN_LIBP2P.to_vec(), ALPN_SHOAL.to_vec()];
        // A stock libp2p client prefers ChaCha20, which costs half the speed on hardware with AES.
        server.ignore_client_order = true;
        server.max_early_data_size = 0;
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        let server = Arc::new(QuicServerConfig::try_from(server).map_err(|e| broken(&e))?);
        Ok(Tls { provider, identity, proven, server })
    }

    /// A client configuration for one dial, and the identity that the remote will have proved.
    pub(crate) fn client(
        &self,
        alpn: &[u8],
        expected: Option<PeerId>,
    ) -> Result<(Arc<QuicClientConfig>, Arc<OnceLock<PeerId>>), rustls::Error> {
        let proved = Arc::new(OnceLock::new());
        let verifier = Verifier { expected, proved: Some(proved.clone()), ..Verifier::anyone(self.proven.clone()) };
        let mut client = rustls::ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous() // rustls' word for "not the web's certificate authorities"
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(self.identity.clone());
        client.alpn_protocols = vec![alpn.to_vec()];
        client.enable_early_data = false;
        // All peers share one server name: a remembered session could be offered to the wrong one.
        client.resumption = Resumption::disabled();
        client.enable_sni = false;
        let client = QuicClientConfig::try_from(client).map_err(|e| rustls::Error::General(e.to_string()))?;
        Ok((Arc::new(client), proved))
    }

    /// The identity that the remote of a handshaken connection proved.
    pub(crate) fn peer_of(&self, connection: &quinn::Connection) -> Option<PeerId> {
        let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        Some(self.proven.owner(chain.first()?, Instant::now()).ok()?.peer)
    }
}

/// The application protocol of a handshake.
pub(crate) fn alpn_of(data: Box<dyn std::any::Any>) -> Option<Vec<u8>> {
    data.downcast::<quinn::crypto::rustls::HandshakeData>().ok()?.protocol
}

/// Offers our one certificate, whatever is asked: libp2p's marks its extension critical, which rustls' own resolvers
/// would refuse to parse.
#[derive(Debug)]
struct Identity(Arc<CertifiedKey>);

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// Checks the remote's certificate by libp2p's rules, and that it proves the peer we want.
#[derive(Debug)]
struct Verifier {
    expected: Option<PeerId>,
    /// Whom a dial found. The verifier of the accepting side serves all connections and keeps nothing.
    proved: Option<Arc<OnceLock<PeerId>>>,
    proven: Arc<Proven>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn anyone(proven: Arc<Proven>) -> Self {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        Verifier { expected: None, proved: None, proven, algorithms }
    }

    fn check(&self, leaf: &CertificateDer<'_>, more: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        if !more.is_empty() {
            return Err(rustls::Error::General("a libp2p peer presents exactly one certificate".into()));
        }
        let peer = self.proven.owner(leaf, Instant::now())?.peer;
        if let Some(proved) = &self.proved {
            proved.get_or_init(|| peer);
        }
        match self.expected {
            Some(expected) if expected != peer => Err(CertificateError::ApplicationVerificationFailure.into()),
            _ => Ok(()),
        }
    }

    fn verify_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let owner = self.proven.owner(leaf, Instant::now())?;
        verify_tls13_signature_with_raw_key(message, &owner.key, signed, &self.algorithms)
    }
}

fn no_tls12() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(PeerIncompatible::Tls12NotOffered.into())
}

/// What libp2p's specification allows.
fn schemes() -> Vec<SignatureScheme> {
    use SignatureScheme as S;
    vec![
        S::ECDSA_NISTP256_SHA256,
        S::ECDSA_NISTP384_SHA384,
        S::ED25519,
        S::RSA_PSS_SHA256,
        S::RSA_PSS_SHA384,
        S::RSA_PSS_SHA512,
        S::RSA_PKCS1_SHA256,
        S::RSA_PKCS1_SHA384,
        S::RSA_PKCS1_SHA512,
    ]
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(leaf, more).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        more: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(leaf, more).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, leaf, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_certificates_are_refused() {
        let verifier = Verifier::anyone(Arc::default());
        for junk in [vec![], vec![0x30, 0x80], vec![0xff; 3_000]] {
            assert!(verifier.check(&CertificateDer::from(junk), &[]).is_err());
        }
        let (certificate, _) = certificate::generate(&Keypair::generate_ed25519()).unwrap();
        verifier.check(&certificate, &[]).unwrap();
        assert!(verifier.check(&certificate, std::slice::from_ref(&certificate)).is_err(), "a chain");
    }
}
