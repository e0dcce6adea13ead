//! JSON ↔ TOML values.
//!
//! Does: carries values over. Owns: nothing. Never knows: keys. Keeps: what cannot be carried over is refused.

use serde_json::Value as Json;
use toml::Value;

/// TOML for JSON; none for null and for integers beyond 64 signed bits, which TOML lacks.
pub(super) fn from_json(json: Json) -> Option<Value> {
    Some(match json {
        Json::Null => return None,
        Json::Bool(value) => Value::Boolean(value),
        Json::Number(number) => match number.as_i64() {
            Some(integer) => Value::Integer(integer),
            None if number.is_u64() => return None,
            None => Value::Float(number.as_f64()?),
        },
        Json::String(text) => Value::String(text),
        Json::Array(items) => {
            Value::Array(items.into_iter().map(from_json).collect::<Option<_>>()?)
        }
        Json::Object(items) => {
            let pair = |(key, item)| Some((key, from_json(item)?));
            Value::Table(items.into_iter().map(pair).collect::<Option<_>>()?)
        }
    })
}

/// JSON for TOML; dates become text; none for numbers that are not finite, which JSON lacks.
pub(super) fn to_json(value: &Value) -> Option<Json> {
    Some(match value {
        Value::String(text) => Json::String(text.clone()),
        Value::Integer(integer) => Json::from(*integer),
        Value::Float(float) => Json::Number(serde_json::Number::from_f64(*float)?),
        Value::Boolean(value) => Json::Bool(*value),
        Value::Datetime(date) => Json::String(date.to_string()),
        Value::Array(items) => Json::Array(items.iter().map(to_json).collect::<Option<_>>()?),
        Value::Table(items) => {
            let pair = |(key, item): (&String, &Value)| Some((key.clone(), to_json(item)?));
            Json::Object(items.iter().map(pair).collect::<Option<_>>()?)
        }
    })
}
