// Type-checks a program as its user would, with the compiler named first, under each way to find modules. Prints what the
// compiler says, one line each; nothing means that all is well. Run in a process of its own: compilers are large.
import { createRequire } from 'node:module'

const [name = '', program = ''] = process.argv.slice(2)
/** @type {typeof import('typescript')} */
const ts = createRequire(import.meta.url)(name)

const ways = {
  nodenext: { module: ts.ModuleKind.NodeNext, moduleResolution: ts.ModuleResolutionKind.NodeNext },
  bundler: { module: ts.ModuleKind.ESNext, moduleResolution: ts.ModuleResolutionKind.Bundler },
}
for (const [way, options] of Object.entries(ways)) {
  const checked = ts.createProgram([program], {
    ...options,
    noEmit: true,
    target: ts.ScriptTarget.ES2022,
    lib: ['lib.es2022.d.ts'],
    types: [],
    strict: true,
    exactOptionalPropertyTypes: true,
    noUncheckedIndexedAccess: true,
    noPropertyAccessFromIndexSignature: true,
    skipLibCheck: false,
  })
  for (const d of ts.getPreEmitDiagnostics(checked)) {
    const text = ts.flattenDiagnosticMessageText(d.messageText, ' ')
    console.log(`${ts.version} ${way}: ${d.file?.fileName ?? ''}: ${text}`)
  }
}
