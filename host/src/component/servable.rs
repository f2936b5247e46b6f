//! Whether a component can be served: the one answer that `inspect`, `serve`, `compile` and `reload` give, before anything
//! is compiled.
//!
//! wasmtime links only what it has compiled, and that takes up to a minute for the largest components. So a hollow copy is
//! compiled and linked in the component's stead: it has the same types, imports and exports, and hardly any code.

use std::convert::Infallible;

use wasm_encoder::reencode::{self, Reencode};
use wasm_encoder::{Function, Instruction, ModuleSection, NestedComponentSection, RawSection};
use wasmparser::{Parser, Payload, TypeRef, Validator};
use wasmtime::component::Component;

use super::surface::{Surface, Unservable};
use crate::component::engine;
use crate::wire::version::WasiHttp;

/// The handler to call, if the component in `bytes`, whose surface this is, is valid and a worker can link it.
pub(crate) fn check(bytes: &[u8], surface: &Surface, links: Links) -> anyhow::Result<WasiHttp> {
    let http = surface.handler()?;
    let engine = engine::for_compiler(http)?;
    let mut validator = Validator::new_with_features(engine.get_wasm_features());
    validator.validate_all(bytes).map_err(|error| Unservable::Invalid(error.to_string()))?;
    let hollow = hollow(bytes).map_err(|error| Unservable::Invalid(error.to_string()))?;
    let component = Component::new(&engine, hollow).map_err(|error| Unservable::Invalid(format!("{error:#}")))?;
    links(&component, http).map_err(|error| Unservable::Unfit(format!("{error:#}")))?;
    Ok(http)
}

/// Links a component as a worker will, which is the worker's to know.
pub(crate) type Links = fn(&Component, WasiHttp) -> wasmtime::Result<()>;

/// The same component with hollow modules.
fn hollow(bytes: &[u8]) -> Result<Vec<u8>, reencode::Error> {
    // The outermost component, and those that are open inside of each other.
    let mut open = vec![wasm_encoder::Component::new()];
    let mut in_module = false;
    for payload in Parser::new(0).parse_all(bytes) {
        let innermost = open.last_mut().expect("the end of the outermost component is the last payload");
        match payload? {
            Payload::ModuleSection { parser, unchecked_range } => {
                let mut module = wasm_encoder::Module::new();
                HollowModule::default().parse_core_module(&mut module, parser, &bytes[unchecked_range])?;
                innermost.section(&ModuleSection(&module));
                in_module = true;
            }
            Payload::End(_) if in_module => in_module = false,
            _ if in_module => {}
            Payload::ComponentSection { .. } => open.push(wasm_encoder::Component::new()),
            Payload::End(_) => {
                let whole = open.pop().expect("it is the innermost");
                match open.last_mut() {
                    Some(outer) => outer.section(&NestedComponentSection(&whole)),
                    None => return Ok(whole.finish()),
                };
            }
            Payload::CustomSection(_) => {}
            other => {
                if let Some((id, range)) = other.as_section() {
                    innermost.section(&RawSection { id, data: &bytes[range] });
                }
            }
        }
    }
    unreachable!("parsing ends with the end of the outermost component, or with an error")
}

/// Makes a module with the same imports and exports that has one function of each type, which does nothing, and nothing
/// in its memories and tables.
#[derive(Default)]
struct HollowModule {
    imported: u32,
    /// The type of each function that is not imported.
    types: Vec<u32>,
    /// The same without repetition: the functions that there will be.
    kinds: Vec<u32>,
}

impl Reencode for HollowModule {
    type Error = Infallible;

    fn function_index(&mut self, function: u32) -> Result<u32, reencode::Error> {
        let own = function.checked_sub(self.imported).and_then(|own| self.types.get(own as usize));
        let place = own.and_then(|own| self.kinds.iter().position(|kind| kind == own));
        Ok(place.map_or(function, |place| self.imported + place as u32))
    }

    fn parse_import_section(
        &mut self,
        imports: &mut wasm_encoder::ImportSection,
        section: wasmparser::ImportSectionReader<'_>,
    ) -> Result<(), reencode::Error> {
        for import in section.clone().into_imports() {
            self.imported += u32::from(matches!(import?.ty, TypeRef::Func(_) | TypeRef::FuncExact(_)));
        }
        reencode::utils::parse_import_section(self, imports, section)
    }

    fn parse_function_section(
        &mut self,
        functions: &mut wasm_encoder::FunctionSection,
        section: wasmparser::FunctionSectionReader<'_>,
    ) -> Result<(), reencode::Error> {
        self.types = section.into_iter().collect::<Result<_, _>>()?;
        self.kinds.clone_from(&self.types);
        self.kinds.sort_unstable();
        self.kinds.dedup();
        for &kind in &self.kinds {
            functions.function(kind);
        }
        Ok(())
    }

    fn parse_code_section(
        &mut self,
        code: &mut wasm_encoder::CodeSection,
        _: wasmparser::CodeSectionReader<'_>,
    ) -> Result<(), reencode::Error> {
        let mut function = Function::new([]);
        function.instruction(&Instruction::Unreachable).instruction(&Instruction::End);
        for _ in &self.kinds {
            code.function(&function);
        }
        Ok(())
    }

    fn parse_element_section(
        &mut self,
        _: &mut wasm_encoder::ElementSection,
        _: wasmparser::ElementSectionReader<'_>,
    ) -> Result<(), reencode::Error> {
        Ok(())
    }

    fn data_count(&mut self, _: u32) -> Result<u32, reencode::Error> {
        Ok(0)
    }

    fn parse_data_section(
        &mut self,
        _: &mut wasm_encoder::DataSection,
        _: wasmparser::DataSectionReader<'_>,
    ) -> Result<(), reencode::Error> {
        Ok(())
    }

    fn parse_custom_section(
        &mut self,
        _: &mut wasm_encoder::Module,
        _: wasmparser::CustomSectionReader<'_>,
    ) -> Result<(), reencode::Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::component::surface::to_binary;

    #[test]
    fn a_hollow_component_is_valid_and_small() {
        let long = "(i32.store (i32.const 0) (i32.const 1))".repeat(1000);
        let text = format!(
            r#"(component
                (import "wasi:io/poll@0.2.0" (instance $poll (export "pollable" (type (sub resource)))))
                (component $inner
                    (core module $module
                        (import "" "given" (func))
                        (memory (export "memory") 1) (table 2 funcref) (global (export "one") funcref (ref.func $one))
                        (func $one (export "answer") (result i32) {long} (i32.const 42))
                        (func $start (memory.init $data (i32.const 0) (i32.const 0) (i32.const 5)) (data.drop $data))
                        (start $start) (elem (i32.const 0) $one $start)
                        (data $data "bytes") (data (i32.const 8) "others"))
                    (core module $host (func (export "given")))
                    (core instance $host (instantiate $host))
                    (core instance $instance (instantiate $module (with "" (instance $host))))
                    (func (export "answer") (result u32) (canon lift (core func $instance "answer"))))
                (instance $instance (instantiate $inner))
                (export "answer" (func $instance "answer")))"#
        );
        let whole = to_binary(text.as_bytes()).unwrap();
        let hollow = hollow(&whole).unwrap();
        assert!(hollow.len() < 600, "{}", hollow.len());
        assert_eq!(Surface::read(&hollow), Surface::read(&whole));
        let engine = engine::for_compiler(WasiHttp::V0_2).unwrap();
        let component = Component::new(&engine, &hollow).unwrap();
        let whole = Component::new(&engine, &*whole).unwrap();
        let names = |component: &Component| {
            let exports = component.component_type();
            exports.exports(&engine).map(|(name, item)| format!("{name}: {item:?}")).collect::<Vec<_>>()
        };
        assert_eq!(names(&component), names(&whole));
    }
}
