//! Lists and dicts that change, as Python's do.
//!
//! None can come to hold itself, not even by way of others: it could be neither printed nor freed. No code of a template
//! runs while one is locked.

use std::sync::{Arc, Mutex, MutexGuard};

use minijinja::value::{Enumerator, Kwargs, Object, ObjectRepr, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::{failed, position};

#[derive(Debug)]
struct MutList(Mutex<Vec<Value>>);

#[derive(Debug)]
struct MutDict(Mutex<Vec<(Value, Value)>>);

/// The value behind a lock.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// A list or dict that changes, with what is in `value`; anything else as it is.
pub fn mutable(value: &Value) -> Result<Value, Error> {
    Ok(match value.kind() {
        ValueKind::Map => {
            let keys: Vec<Value> = value.try_iter()?.collect();
            let items = keys.into_iter().map(|key| value.get_item(&key).map(|item| (key, item)));
            Value::from_object(MutDict(Mutex::new(items.collect::<Result<_, _>>()?)))
        }
        ValueKind::Seq => Value::from_object(MutList(Mutex::new(value.try_iter()?.collect()))),
        _ => value.clone(),
    })
}

/// Whether `value` holds what stands at `address`.
fn holds(state: &State, value: &Value, address: *const (), depth: usize) -> Result<bool, Error> {
    state.consume_fuel(1)?;
    let items: Vec<Value> = match value.as_object() {
        None => return Ok(false),
        Some(object) => {
            if let Some(list) = object.downcast::<MutList>() {
                if Arc::as_ptr(&list).cast::<()>() == address {
                    return Ok(true);
                }
                held(&list.0).clone()
            } else if let Some(dict) = object.downcast::<MutDict>() {
                if Arc::as_ptr(&dict).cast::<()>() == address {
                    return Ok(true);
                }
                held(&dict.0).iter().map(|(_, item)| item.clone()).collect()
            } else if value.kind() == ValueKind::Map {
                let keys: Vec<Value> = value.try_iter()?.collect();
                keys.iter().map(|key| value.get_item(key)).collect::<Result<_, _>>()?
            } else if matches!(value.kind(), ValueKind::Seq) {
                value.try_iter()?.collect()
            } else {
                return Ok(false);
            }
        }
    };
    let Some(depth) = depth.checked_sub(1) else { return Err(failed("lists are nested too deep")) };
    for item in &items {
        if holds(state, item, address, depth)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Refuses a value that must not be put into the list or dict at `address`.
fn admit(state: &State, value: &Value, address: *const ()) -> Result<(), Error> {
    if holds(state, value, address, 64)? { Err(failed("a list cannot hold itself")) } else { Ok(()) }
}

/// A place in a list of `length` items, counted from the end if negative.
fn place(index: i64, length: usize) -> Option<usize> {
    let index = if index < 0 { index + length as i64 } else { index };
    usize::try_from(index).ok().filter(|i| *i < length)
}

impl Object for MutList {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let list = held(&self.0);
        place(key.as_i64()?, list.len()).map(|i| list[i].clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(held(&self.0).len())
    }

    fn call_method(self: &Arc<Self>, state: &mut State<'_, '_>, name: &str, args: &[Value]) -> Result<Value, Error> {
        let address = Arc::as_ptr(self).cast::<()>();
        match name {
            "append" => {
                let (item,): (Value,) = from_args(args)?;
                admit(state, &item, address)?;
                held(&self.0).push(item);
            }
            "extend" => {
                let (items,): (&Value,) = from_args(args)?;
                let items: Vec<Value> = items.try_iter()?.collect();
                state.consume_fuel(items.len() as u64)?;
                for item in &items {
                    admit(state, item, address)?;
                }
                held(&self.0).extend(items);
            }
            "insert" => {
                let (index, item): (i64, Value) = from_args(args)?;
                admit(state, &item, address)?;
                let mut list = held(&self.0);
                let index = if index < 0 { index + list.len() as i64 } else { index };
                let index = index.clamp(0, list.len() as i64) as usize;
                list.insert(index, item);
            }
            "pop" => {
                let (index,): (Option<i64>,) = from_args(args)?;
                let mut list = held(&self.0);
                let index = place(index.unwrap_or(-1), list.len());
                return Ok(list.remove(index.ok_or_else(|| failed("there is nothing to pop"))?));
            }
            "remove" => {
                let (item,): (&Value,) = from_args(args)?;
                let index = position(state, &Value::from_dyn_object(self.clone()), item)?;
                if let Some(index) = index.as_usize() {
                    held(&self.0).remove(index);
                }
            }
            "reverse" => {
                let () = from_args(args)?;
                held(&self.0).reverse();
            }
            "clear" => {
                let () = from_args(args)?;
                held(&self.0).clear();
            }
            "sort" => {
                let (named,): (Kwargs,) = from_args(args)?;
                let reverse = named.get::<Option<bool>>("reverse")?.unwrap_or(false);
                named.assert_all_used()?;
                let mut items = held(&self.0).clone();
                state.consume_fuel(items.len() as u64 * 4)?;
                items.sort();
                if reverse {
                    items.reverse();
                }
                *held(&self.0) = items;
            }
            _ => return Err(Error::from(ErrorKind::UnknownMethod)),
        }
        Ok(Value::from(()))
    }
}

impl Object for MutDict {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Map
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let dict = held(&self.0);
        find(&dict, key).map(|i| dict[i].1.clone())
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(held(&self.0).iter().map(|(key, _)| key.clone()).collect())
    }

    fn call_method(self: &Arc<Self>, state: &mut State<'_, '_>, name: &str, args: &[Value]) -> Result<Value, Error> {
        let address = Arc::as_ptr(self).cast::<()>();
        state.consume_fuel(1 + held(&self.0).len() as u64 / 16)?;
        match name {
            "update" => {
                let (positional, named): (Option<&Value>, Kwargs) = from_args(args)?;
                let mut items = Vec::new();
                if let Some(other) = positional {
                    for key in other.try_iter()? {
                        let item = other.get_item(&key)?;
                        items.push((key, item));
                    }
                }
                for name in named.args() {
                    items.push((Value::from(name), named.get(name)?));
                }
                state.consume_fuel(items.len() as u64)?;
                for (key, item) in items {
                    admit(state, &item, address)?;
                    self.set(key, item);
                }
                Ok(Value::from(()))
            }
            "setdefault" => {
                let (key, default): (Value, Option<Value>) = from_args(args)?;
                if let Some(known) = self.get_value(&key) {
                    return Ok(known);
                }
                let default = default.unwrap_or_default();
                admit(state, &default, address)?;
                self.set(key, default.clone());
                Ok(default)
            }
            "pop" => {
                let (key, default): (&Value, Option<Value>) = from_args(args)?;
                let mut dict = held(&self.0);
                match find(&dict, key) {
                    Some(i) => Ok(dict.remove(i).1),
                    None => default.ok_or_else(|| failed("the dict has no such key")),
                }
            }
            "clear" => {
                let () = from_args(args)?;
                held(&self.0).clear();
                Ok(Value::from(()))
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}

impl MutDict {
    fn set(&self, key: Value, item: Value) {
        let mut dict = held(&self.0);
        match find(&dict, &key) {
            Some(i) => dict[i].1 = item,
            None => dict.push((key, item)),
        }
    }
}

/// Where a key stands in a dict. What changes is no key, in Python as here: to compare it would take its lock.
fn find(dict: &[(Value, Value)], key: &Value) -> Option<usize> {
    if !is_hashable(key) {
        return None;
    }
    dict.iter().position(|(known, _)| is_hashable(known) && known == key)
}

/// Whether the value can be a key: text, a number, or a tuple of such. Tuples of tuples cannot, because a few of them
/// can stand for more than could ever be looked at.
pub fn is_hashable(value: &Value) -> bool {
    let plain = |value: &Value| value.as_object().is_none();
    plain(value) || (value.is_tuple() && value.try_iter().is_ok_and(|mut items| items.all(|item| plain(&item))))
}
