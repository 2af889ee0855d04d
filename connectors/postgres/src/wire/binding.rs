//! What binds a login to the TLS connection that it is made over: the hash of the server's certificate
//! (RFC 5929, section 4, `tls-server-end-point`), as SCRAM-SHA-256-PLUS sends it.

use sha2::{Digest, Sha256, Sha384, Sha512};

/// The hash of a certificate, in DER; `None` if its signature names no hash (Ed25519, RSA-PSS).
pub(super) fn of_certificate(der: &[u8]) -> Option<Vec<u8>> {
    Some(match signature(der)? {
        // MD5 and SHA-1 count as SHA-256: section 4.1.
        RSA_MD5 | RSA_SHA1 | ECDSA_SHA1 | RSA_SHA256 | ECDSA_SHA256 => Sha256::digest(der).to_vec(),
        RSA_SHA384 | ECDSA_SHA384 => Sha384::digest(der).to_vec(),
        RSA_SHA512 | ECDSA_SHA512 => Sha512::digest(der).to_vec(),
        _ => return None,
    })
}

// Object identifiers as DER has them (RFC 4055, RFC 5758).
const RSA_MD5: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x04";
const RSA_SHA1: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x05";
const RSA_SHA256: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b";
const RSA_SHA384: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0c";
const RSA_SHA512: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0d";
const ECDSA_SHA1: &[u8] = b"\x2a\x86\x48\xce\x3d\x04\x01";
const ECDSA_SHA256: &[u8] = b"\x2a\x86\x48\xce\x3d\x04\x03\x02";
const ECDSA_SHA384: &[u8] = b"\x2a\x86\x48\xce\x3d\x04\x03\x03";
const ECDSA_SHA512: &[u8] = b"\x2a\x86\x48\xce\x3d\x04\x03\x04";

const SEQUENCE: u8 = 0x30;
const OBJECT_IDENTIFIER: u8 = 0x06;

/// `Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm SEQUENCE { algorithm, .. }, .. }` (RFC 5280).
fn signature(der: &[u8]) -> Option<&[u8]> {
    let (certificate, _) = element(der, SEQUENCE)?;
    let (_, rest) = element(certificate, SEQUENCE)?;
    let (algorithm, _) = element(rest, SEQUENCE)?;
    element(algorithm, OBJECT_IDENTIFIER).map(|(identifier, _)| identifier)
}

/// The content of an element of this kind, and what follows it.
fn element(der: &[u8], kind: u8) -> Option<(&[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        ..=0x7f => (usize::from(first), rest),
        // The length itself takes so many bytes. A certificate of 16 MiB is none.
        0x81..=0x83 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    (tag == kind).then(|| rest.split_at_checked(length))?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapped(kind: u8, content: &[u8]) -> Vec<u8> {
        let length = content.len();
        let mut der = match length {
            0..0x80 => vec![kind, length as u8],
            0x80..0x100 => vec![kind, 0x81, length as u8],
            _ => vec![kind, 0x82, (length >> 8) as u8, length as u8],
        };
        der.extend_from_slice(content);
        der
    }

    fn certificate(signature: &[u8], filling: usize) -> Vec<u8> {
        let mut parts = wrapped(SEQUENCE, &vec![0; filling]);
        parts.extend(wrapped(SEQUENCE, &wrapped(OBJECT_IDENTIFIER, signature)));
        parts.extend([0x03, 0x01, 0x00]);
        wrapped(SEQUENCE, &parts)
    }

    #[test]
    fn the_signature_chooses_the_hash() {
        for filling in [3, 200, 1000] {
            for (signature, bytes) in [(RSA_SHA1, 32), (ECDSA_SHA256, 32), (RSA_SHA384, 48), (ECDSA_SHA512, 64)] {
                let der = certificate(signature, filling);
                assert_eq!(of_certificate(&der).map(|hash| hash.len()), Some(bytes));
            }
            assert_eq!(of_certificate(&certificate(b"\x2b\x65\x70", filling)), None, "Ed25519");
        }
    }

    proptest::proptest! {
        #[test]
        fn damaged_certificates_never_panic(
            at in proptest::prelude::any::<proptest::sample::Index>(),
            byte: u8,
            cut in proptest::prelude::any::<proptest::sample::Index>(),
        ) {
            let mut der = certificate(RSA_SHA256, 300);
            let (at, cut) = (at.index(der.len()), cut.index(der.len()));
            der[at] = byte;
            let _ = of_certificate(&der);
            let _ = of_certificate(&der[..cut]);
        }
    }
}
