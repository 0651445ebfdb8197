//! Typed access to a case's attributes; what is wrong is named with its key and value.

use crate::error::{Error, Result};
use crate::models::json_config::did_you_mean;
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// The attributes of a reference case.
#[derive(Clone, Debug)]
pub struct Attributes {
    object: Map<String, Value>,
    /// Keys that were asked for.
    read: RefCell<BTreeSet<String>>,
}

impl Attributes {
    pub fn new(object: Map<String, Value>) -> Attributes {
        Attributes { object, read: RefCell::default() }
    }

    pub fn object(&self) -> &Map<String, Value> {
        &self.object
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.read.borrow_mut().insert(key.to_string());
        self.object.get(key)
    }

    /// Whether every attribute was asked for, so that none is silently ignored.
    ///
    /// # Errors
    /// An attribute that the operation does not have.
    pub fn refuse_unread(&self, op: &str) -> Result<()> {
        let read = self.read.borrow();
        match self.object.keys().find(|key| !read.contains(*key)) {
            None => Ok(()),
            Some(key) => {
                let near = did_you_mean(key, read.iter().map(String::as_str));
                Err(Error::invalid(format!(
                    "the attribute `{key}` is nothing that `{op}` has{near}"
                )))
            }
        }
    }

    /// An attribute of PyTorch's operation of which only this value can be replayed.
    ///
    /// # Errors
    /// Another value.
    pub fn only(&self, key: &str, value: u64) -> Result<()> {
        match self.get(key) {
            None => Ok(()),
            Some(given) if *given == value => Ok(()),
            given => Err(wrong(key, given, &value.to_string())),
        }
    }

    /// A nested object, such as `config` or `optimizer`.
    pub fn nested(&self, key: &str) -> Result<Attributes> {
        match self.get(key) {
            Some(Value::Object(object)) => Ok(Attributes::new(object.clone())),
            other => Err(wrong(key, other, "an object")),
        }
    }

    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some_and(|value| !value.is_null())
    }

    /// A whole number of at least 1.
    pub fn size(&self, key: &str) -> Result<usize> {
        let value = self.get(key);
        // PyTorch writes scale factors as floats, too.
        let number = value.and_then(|v| v.as_u64().or_else(|| v.as_f64().and_then(whole)));
        match number.and_then(|n| usize::try_from(n).ok()) {
            Some(n) if (1..=1 << 20).contains(&n) => Ok(n),
            _ => Err(wrong(key, value, "a whole number from 1 to 1048576")),
        }
    }

    pub fn number(&self, key: &str) -> Result<f64> {
        let value = self.get(key);
        value.and_then(Value::as_f64).ok_or_else(|| wrong(key, value, "a number"))
    }

    pub fn number_or(&self, key: &str, default: f64) -> Result<f64> {
        if self.has(key) { self.number(key) } else { Ok(default) }
    }

    pub fn flag_or(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            other => Err(wrong(key, other, "true or false")),
        }
    }

    pub fn text_or<'a>(&'a self, key: &str, default: &'a str) -> Result<&'a str> {
        match self.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::String(text)) => Ok(text),
            other => Err(wrong(key, other, "a string")),
        }
    }

    pub fn numbers(&self, key: &str) -> Result<Vec<f64>> {
        let value = self.get(key);
        let list = value.and_then(Value::as_array);
        list.and_then(|list| list.iter().map(Value::as_f64).collect())
            .ok_or_else(|| wrong(key, value, "a list of numbers"))
    }

    /// `stride`: a number or [vertical, horizontal]; 1 when absent.
    pub fn stride(&self) -> Result<[usize; 2]> {
        match self.sizes("stride", 1)?[..] {
            [both] if both > 0 => Ok([both, both]),
            [vertical, horizontal] if vertical > 0 && horizontal > 0 => Ok([vertical, horizontal]),
            _ => Err(wrong("stride", self.get("stride"), "a positive number or two of them")),
        }
    }

    /// `padding` as [top, bottom, left, right]: a number, [vertical, horizontal], or
    /// [left, right, top, bottom] in the order of `torch.nn.functional.pad`; 0 when absent.
    pub fn padding(&self) -> Result<[usize; 4]> {
        match self.sizes("padding", 0)?[..] {
            [all] => Ok([all; 4]),
            [vertical, horizontal] => Ok([vertical, vertical, horizontal, horizontal]),
            [left, right, top, bottom] => Ok([top, bottom, left, right]),
            _ => Err(wrong("padding", self.get("padding"), "1, 2 or 4 numbers")),
        }
    }

    fn sizes(&self, key: &str, default: usize) -> Result<Vec<usize>> {
        let value = match self.get(key) {
            None | Some(Value::Null) => return Ok(vec![default]),
            Some(value) => value,
        };
        let size = |v: &Value| v.as_u64().filter(|&n| n <= 1 << 16).map(|n| n as usize);
        let sizes = match value {
            Value::Array(list) => list.iter().map(size).collect(),
            single => size(single).map(|n| vec![n]),
        };
        sizes.ok_or_else(|| wrong(key, Some(value), "a number or a list of numbers"))
    }
}

fn whole(number: f64) -> Option<u64> {
    (number.fract() == 0.0 && (0.0..1e9).contains(&number)).then_some(number as u64)
}

fn wrong(key: &str, value: Option<&Value>, wanted: &str) -> Error {
    match value {
        None => Error::invalid(format!("the attribute `{key}` is missing; {wanted} is needed")),
        Some(value) => {
            let mut text: String = value.to_string().chars().take(60).collect();
            if text.len() < value.to_string().len() {
                text.push('…');
            }
            Error::invalid(format!("the attribute `{key}` is {text}; {wanted} is needed"))
        }
    }
}
