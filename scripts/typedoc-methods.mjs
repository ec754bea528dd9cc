// A plugin of typedoc: the methods of Tensor, which are made of functions by a mapped type, appear as methods with the
// functions' parameters, not as properties with a list of types. Their texts come along.
import { Converter, ParameterReflection, ReflectionFlag, ReflectionKind, SignatureReflection } from 'typedoc'

/** @param {import('typedoc').Application} app */
export function load(app) {
  app.converter.on(Converter.EVENT_RESOLVE_BEGIN, (context) => {
    const { project } = context
    const all = Object.values(project.reflections)
    const tensors = all.filter((r) => r.name === 'Tensor' && r.kindOf(ReflectionKind.Class))
    /** @type {Map<string, any[]>} */
    const functions = new Map()
    for (const r of /** @type {any[]} */ (all)) {
      const signatures = r.kindOf(ReflectionKind.Function) ? r.signatures : r.type?.declaration?.signatures
      const isExported = r.kindOf(ReflectionKind.Function) || r.kindOf(ReflectionKind.Variable)
      if (isExported && signatures) functions.set(r.name, signatures)
    }
    for (const tensor of tensors)
      for (const child of /** @type {any} */ (tensor).children ?? []) {
        const of = functions.get(child.name)
        const made = child.type?.declaration?.signatures?.some((/** @type {any} */ s) =>
          s.parameters?.some((/** @type {any} */ p) => p.name === 'rest'),
        )
        if (!made) continue
        if (!of) {
          // A method that is no function of the package: its list of types is taken apart.
          for (const s of child.type.declaration.signatures) {
            const [rest] = s.parameters
            const { elements } = rest.type
            project.removeReflection(rest)
            s.parameters = elements.map((/** @type {any} */ e) => {
              const parameter = new ParameterReflection(e.name, ReflectionKind.Parameter, s)
              parameter.type = e.element
              parameter.setFlag(ReflectionFlag.Optional, e.isOptional)
              project.registerReflection(parameter, undefined, undefined)
              return parameter
            })
          }
          continue
        }
        child.kind = ReflectionKind.Method
        child.signatures = of.map((/** @type {any} */ from) => {
          const signature = new SignatureReflection(child.name, ReflectionKind.CallSignature, child)
          signature.comment = (from.comment ?? child.comment)?.clone()
          signature.type = from.type
          signature.parameters = from.parameters?.slice(1).map((/** @type {any} */ p) => {
            const parameter = new ParameterReflection(p.name, ReflectionKind.Parameter, signature)
            parameter.type = p.type
            parameter.flags = p.flags
            parameter.comment = p.comment?.clone()
            if (p.defaultValue !== undefined) parameter.defaultValue = p.defaultValue
            project.registerReflection(parameter, undefined, undefined)
            return parameter
          })
          project.registerReflection(signature, undefined, undefined)
          return signature
        })
        project.removeTypeReflections?.(child.type)
        child.type = undefined
        child.defaultValue = undefined
        child.comment = undefined
      }
  })
}
