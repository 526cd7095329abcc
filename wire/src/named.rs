//! What the variants of an enum are called where each is one word: in files, commands, logs and JSON.

/// Gives each variant its name, and the enum a list of them in the order of their numbers.
macro_rules! named {
    ($type:ident, $($variant:ident = $name:literal),+ $(,)?) => {
        impl $type {
            /// Every one, in the order of their numbers.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$variant),+];

            /// The name in files, commands, logs and JSON.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)+
                }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }
    };
}

pub(crate) use named;

#[cfg(test)]
mod tests {
    use crate::dns::RecordType;
    use crate::flow::{HeaderScope, OnLoss, OnReturn};
    use crate::health::{InitialHealth, OnDown, WhenAllDown};
    use crate::report::{DropReason, EndReason};
    use crate::settings::{AdminState, Policy, Protocol};

    /// Counters stand at the numbers of their reasons, and JSON has its names from serde.
    #[test]
    fn names_are_in_the_order_of_their_numbers_and_those_of_json() {
        macro_rules! check {
            ($($type:ident),+) => {
                $(for (number, one) in $type::ALL.into_iter().enumerate() {
                    assert_eq!(one as usize, number, "{one}");
                    let json = serde_json::to_string(&one).expect("text");
                    assert_eq!(json, format!("\"{one}\""));
                    assert_eq!(serde_json::from_str::<$type>(&json).expect("its name"), one);
                })+
            };
        }
        check!(RecordType, HeaderScope, OnLoss, OnReturn, InitialHealth, OnDown, WhenAllDown);
        check!(DropReason, EndReason, AdminState, Policy, Protocol);
    }
}
