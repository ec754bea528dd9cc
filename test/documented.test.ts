import { readdirSync, readFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'
import { describe, expect, test } from 'vitest'

/**
 * Everything that the packages export is documented: with whole sentences, functions and methods with an example. What
 * is meant for the other packages only says `@internal`.
 */
const root = fileURLToPath(new URL('..', import.meta.url))
const packages = readdirSync(join(root, 'packages'))
const entries = packages.flatMap((name) => {
  const { exports } = JSON.parse(readFileSync(join(root, 'packages', name, 'package.json'), 'utf8'))
  return Object.values(exports as Record<string, { types: string }>).map(({ types }) =>
    join(root, 'packages', name, types.replace('dist', 'src').replace('.d.ts', '.ts')),
  )
})
const program = ts.createProgram(entries, {
  noEmit: true,
  allowImportingTsExtensions: true,
  module: ts.ModuleKind.ESNext,
  moduleResolution: ts.ModuleResolutionKind.Bundler,
  target: ts.ScriptTarget.ES2022,
  lib: ['lib.es2023.d.ts', 'lib.esnext.disposable.d.ts', 'lib.dom.d.ts'],
  types: ['node'],
  skipLibCheck: true,
  paths: { '@tilegrad/*': [join(root, 'packages/*/src/index.ts')] },
})
const checker = program.getTypeChecker()

/** Parts of engines and tests of engines, and what needs a file of its own to run: their text is enough. */
const withoutExample = new Set(
  `attentionOperands flatOf createPeaks expectTensor gradient referenceKernels reportPath runWorkers asRank shownAs specialize typedPostOrder`.split(
    ' ',
  ),
)

/** What is wrong with the documentation of a declaration, or nothing. */
function complaint(symbol: ts.Symbol, needsExample: boolean): string | null {
  const tags = symbol.getJsDocTags(checker)
  if (tags.some((tag) => tag.name === 'internal')) return null
  const text = ts.displayPartsToString(symbol.getDocumentationComment(checker)).trim()
  if (text === '') return 'has no documentation'
  if (!/[.:!)`…]$/.test(text)) return `does not end as a sentence does: ${text}`
  // A formula may begin a sentence; a fragment that needs its neighbour may not.
  if (/^(?:The same|As `?\w+`?,|Of |Same |See )/.test(text)) return `is a fragment: ${text}`
  if (needsExample && !tags.some((tag) => tag.name === 'example')) return 'has no example'
  return null
}

const isPrivate = (symbol: ts.Symbol): boolean =>
  (symbol.declarations ?? []).every(
    (d) =>
      (ts.getCombinedModifierFlags(d) & (ts.ModifierFlags.Private | ts.ModifierFlags.Protected)) !== 0 ||
      ((ts.isPropertyDeclaration(d) || ts.isMethodDeclaration(d)) && ts.isPrivateIdentifier(d.name)),
  )

/** The declarations of ours: not what a class has from a library. */
const ours = (symbol: ts.Symbol): boolean =>
  (symbol.declarations ?? []).some((d) => /packages\/[\w-]+\/src\//.test(d.getSourceFile().fileName))

function* complaints(symbol: ts.Symbol, path: string, seen: Set<ts.Symbol>): Generator<string> {
  if (seen.has(symbol) || !ours(symbol)) return
  seen.add(symbol)
  const target = symbol.flags & ts.SymbolFlags.Alias ? checker.getAliasedSymbol(symbol) : symbol
  if (target.getJsDocTags(checker).some((tag) => tag.name === 'internal')) return
  if (target.flags & ts.SymbolFlags.ValueModule) {
    for (const member of checker.getExportsOfModule(target))
      yield* complaints(member, `${path}.${member.name}`, seen)
    return
  }
  const type =
    target.flags & ts.SymbolFlags.Value
      ? checker.getTypeOfSymbolAtLocation(target, target.declarations?.[0] as ts.Node)
      : undefined
  // Of the parts that operators and backends are made of, the text is enough.
  const inner = /^(?:expr|layout)\./.test(path)
  const callable =
    !inner && !withoutExample.has(path) && type !== undefined && type.getCallSignatures().length > 0
  // Documentation stands at the declaration, or where a name is exported as another.
  const own = complaint(target, callable)
  const where = own !== null && symbol !== target && complaint(symbol, callable) === null ? null : own
  if (where !== null) yield `${path} ${where}`
  if (target.flags & (ts.SymbolFlags.Class | ts.SymbolFlags.Interface)) {
    for (const member of checker.getDeclaredTypeOfSymbol(target).getProperties()) {
      if (isPrivate(member) || !ours(member) || member.name.startsWith('__@') || seen.has(member)) continue
      // Of an error that is the class's name.
      if (member.name === 'name' && /Error$/.test(target.name)) continue
      seen.add(member)
      const isMethod =
        (member.flags & ts.SymbolFlags.Method) !== 0 && (target.flags & ts.SymbolFlags.Class) !== 0
      const found = complaint(member, isMethod && target.name === 'Tensor')
      if (found !== null) yield `${path}.${member.name} ${found}`
    }
  }
}

describe('what is exported is documented', () => {
  test.each(entries.map((file) => relative(root, file)))('%s', (entry) => {
    const file = program.getSourceFile(join(root, entry)) as ts.SourceFile
    const module = checker.getSymbolAtLocation(file) as ts.Symbol
    const seen = new Set<ts.Symbol>()
    const found = checker
      .getExportsOfModule(module)
      .flatMap((symbol) => [...complaints(symbol, symbol.name, seen)])
    expect(found).toEqual([])
  })
})
