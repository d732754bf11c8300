//! A list that usually has one element, and then needs no allocation.

/// A list that usually has one element, and then needs no allocation.
#[derive(Debug, Clone)]
pub struct Few<T> {
    first: Option<T>,
    rest: Vec<T>,
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Few {
            first: None,
            rest: Vec::new(),
        }
    }
}

impl<T> Few<T> {
    /// A list with one element.
    pub fn one(value: T) -> Few<T> {
        Few {
            first: Some(value),
            rest: Vec::new(),
        }
    }

    /// The element, if there is exactly one.
    pub(crate) fn single(&self) -> Option<&T> {
        self.first.as_ref().filter(|_| self.rest.is_empty())
    }

    /// Appends an element.
    pub fn push(&mut self, value: T) {
        match self.first {
            None => self.first = Some(value),
            Some(_) => self.rest.push(value),
        }
    }

    /// Whether the list is empty.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// The elements, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.first.iter().chain(&self.rest)
    }

    pub(crate) fn sort_by_key<K: Ord>(&mut self, key: impl FnMut(&T) -> K) {
        if self.rest.is_empty() {
            return;
        }
        self.rest.extend(self.first.take());
        self.rest.sort_unstable_by_key(key);
        self.first = Some(self.rest.remove(0));
    }
}

impl<T> IntoIterator for Few<T> {
    type Item = T;
    type IntoIter = std::iter::Chain<std::option::IntoIter<T>, std::vec::IntoIter<T>>;

    fn into_iter(self) -> Self::IntoIter {
        self.first.into_iter().chain(self.rest)
    }
}

impl<T> FromIterator<T> for Few<T> {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        let mut values = values.into_iter();
        Few {
            first: values.next(),
            rest: values.collect(),
        }
    }
}
