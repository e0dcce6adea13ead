//! Who may do what: the configuration's keys and grants → an [`Authority`].

use super::StartError;
use crate::{
    auth::{self, ApiKey, Authority, GrantSpec, JwtKey, KeyError},
    config::{self, Config, JwtAlgorithm, JwtKeyConfig},
};

/// Whose tokens hold, as configured.
///
/// # Errors
/// [`StartError::Access`].
pub fn authority(config: &Config) -> Result<Authority, StartError> {
    let refused = |error: &dyn std::fmt::Display| StartError::Access(error.to_string());
    let access = &config.access;
    let jwt = access
        .jwt_keys
        .iter()
        .map(jwt_key)
        .collect::<Result<Vec<_>, _>>();
    let api = access.api_keys.iter().map(|key| ApiKey {
        id: key.id.clone(),
        sha256: key.sha256,
        grant: grant(&key.channels, &key.can),
    });
    let anonymous = access
        .anonymous
        .as_ref()
        .map(|anonymous| grant(&anonymous.channels, &anonymous.can));
    Authority::new(
        jwt.map_err(|error| refused(&error))?,
        api.collect(),
        anonymous,
    )
    .map_err(|error| refused(&error))
}

/// A key, for the one algorithm that it is configured for.
///
/// # Errors
/// [`KeyError`], which a configuration that was read does not give.
pub fn jwt_key(key: &JwtKeyConfig) -> Result<JwtKey, KeyError> {
    let make = match key.algorithm {
        JwtAlgorithm::Hs256 => JwtKey::hs256,
        JwtAlgorithm::Rs256 => JwtKey::rs256,
        JwtAlgorithm::Es256 => JwtKey::es256,
        JwtAlgorithm::EdDsa => JwtKey::eddsa,
    };
    make(&key.id, &key.key)
}

fn grant(channels: &[config::ChannelPattern], can: &[config::Permission]) -> GrantSpec {
    let permission = |can: &config::Permission| match can {
        config::Permission::Subscribe => auth::Permission::Subscribe,
        config::Permission::Publish => auth::Permission::Publish,
    };
    GrantSpec {
        channels: channels
            .iter()
            .map(|pattern| pattern.as_str().to_owned())
            .collect(),
        can: can.iter().map(permission).collect(),
    }
}
