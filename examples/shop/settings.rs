//! What the office decides, known to every module at once: each keeps a copy and asks nobody.

use crate::keeping::{Book, Keeping};
use crate::names::{COURIER, Carrier, SETTINGS, Setting, price};
use postroom::{Broker, Error, Message, Subscription, Topic};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Where settings are decided. It knows nobody who listens.
pub struct Office {
    settings: Topic<Setting>,
    decided: Mutex<Book<String, Setting>>,
}

impl Office {
    pub fn open(broker: &Broker, keeping: &Keeping) -> Result<Self, Box<dyn std::error::Error>> {
        let settings = broker.topic(SETTINGS).keep_latest_by_key().declare()?;
        Ok(Self { settings, decided: Mutex::new(keeping.book("settings")?) })
    }

    pub fn decide(&self, name: &str, setting: Setting) {
        self.decided.lock().unwrap().insert(name.to_owned(), setting);
        self.settings.publish("", Message::new(setting).with_key(name)).expect("the shop is open");
    }

    pub fn decided(&self) -> BTreeMap<String, Setting> {
        BTreeMap::clone(&self.decided.lock().unwrap())
    }
}

/// A module's copy of all settings: the current ones from the start, then each that changes.
pub struct Settings {
    copy: Arc<Mutex<Copy>>,
    subscription: Subscription,
}

#[derive(Default)]
struct Copy {
    values: BTreeMap<String, Setting>,
    heard: u64,
}

impl Settings {
    pub fn of(broker: &Broker, module: &str) -> Result<Arc<Self>, Error> {
        let copy: Arc<Mutex<Copy>> = Arc::default();
        let mine = copy.clone();
        let listening = broker.topic(SETTINGS).find()?.subscribe().name(module).replay_latest_by_key();
        let subscription = listening.start(move |setting: &Message<Setting>| {
            let mut copy = mine.lock().unwrap();
            copy.values.insert(setting.key().unwrap_or_default().to_owned(), *setting.payload());
            copy.heard += 1;
        })?;
        Ok(Arc::new(Self { copy, subscription }))
    }

    pub fn price(&self, item: &str) -> Option<u64> {
        match self.copy.lock().unwrap().values.get(&price(item)) {
            Some(Setting::Price(cents)) => Some(*cents),
            _ => None,
        }
    }

    pub fn carrier(&self) -> Carrier {
        if self.is_on(COURIER) { Carrier::Courier } else { Carrier::Post }
    }

    fn is_on(&self, switch: &str) -> bool {
        self.copy.lock().unwrap().values.get(switch) == Some(&Setting::Switch(true))
    }

    pub fn all(&self) -> BTreeMap<String, Setting> {
        self.copy.lock().unwrap().values.clone()
    }

    /// How many settings it was told of, and how many it missed.
    pub fn heard(&self) -> (u64, u64) {
        (self.copy.lock().unwrap().heard, self.subscription.lagged())
    }
}
