import { readdirSync, readFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import * as tilegrad from 'tilegrad'
import ts from 'typescript'

export const root = fileURLToPath(new URL('../..', import.meta.url))

/** A program that a reader pastes. */
export interface Example {
  /** The page, or the file and line of the docstring. */
  readonly where: string
  readonly code: string
}

/** The ts blocks of a page, pasted into one file one after the other. */
function fromPage(file: string): Example[] {
  const text = readFileSync(join(root, file), 'utf8')
  const blocks = [...text.matchAll(/^```ts\n([\s\S]*?)^```/gm)].map((m) => m[1] ?? '')
  return blocks.length > 0 ? [{ where: file, code: blocks.join('\n') }] : []
}

/**
 * The examples of docstrings. They are shown beside the name that they are of, without the imports of tilegrad's names:
 * the import of those that they use and do not make themselves stands in their first line here.
 */
function fromSource(file: string): Example[] {
  const text = readFileSync(file, 'utf8')
  return [...text.matchAll(/^ *\* @example\n((?: *\* ?.*\n)*?) *(?:\*\/|\* @)/gm)].map((m) => {
    const code = (m[1] ?? '').replace(/^ *\* ?/gm, '').replace(/^```.*$/gm, '')
    const used = new Set(code.replace(/\.\w+/g, '').match(/\b[A-Za-z_]\w*/g))
    const own = new Set(
      [...code.matchAll(/\b(?:const|let|function|class|import) (?:\{([^}]*)\}|\[([^\]]*)\]|(\w+))/g)].flatMap(
        ([, a, b, c]) => (a ?? b ?? c ?? '').split(/[\s,]+/),
      ),
    )
    const names = [...used].filter((name) => name in tilegrad && !own.has(name))
    const imports = names.length > 0 ? `import { ${names.join(', ')} } from 'tilegrad'\n` : ''
    return {
      where: `${relative(root, file)}:${text.slice(0, m.index).split('\n').length}`,
      code: `${imports}${code}\nexport {}\n`,
    }
  })
}

const pages = ['README.md', 'CONTRIBUTING.md', ...readdirSync(join(root, 'docs')).map((f) => `docs/${f}`)]
const packages = readdirSync(join(root, 'packages'))
const sources = packages.flatMap((name) =>
  readdirSync(join(root, 'packages', name, 'src'), { recursive: true, encoding: 'utf8' })
    .filter((f) => f.endsWith('.ts'))
    .map((f) => join(root, 'packages', name, 'src', f)),
)

/** Every example: of README.md, the guides, the packages' pages, and the docstrings. */
export const examples: readonly Example[] = [
  ...[...pages, ...packages.map((name) => `packages/${name}/README.md`)]
    .filter((f) => f.endsWith('.md'))
    .flatMap(fromPage),
  ...sources.flatMap(fromSource),
]

/** A statement whose value a comment behind it, `// → text`, tells. */
interface Told {
  readonly from: number
  readonly to: number
  readonly text: string
}

/** The values that comments tell. @throws Error for one that stands behind anything but an expression. */
function told(code: string): Told[] {
  const file = ts.createSourceFile('example.ts', code, ts.ScriptTarget.Latest, true)
  const byLine = new Map<number, ts.ExpressionStatement>()
  const visit = (node: ts.Node): void => {
    if (ts.isExpressionStatement(node))
      byLine.set(file.getLineAndCharacterOfPosition(node.getEnd()).line, node)
    ts.forEachChild(node, visit)
  }
  visit(file)
  return code.split('\n').flatMap((line, i) => {
    const text = /\/\/ → (.+)$/.exec(line)?.[1]?.trim()
    if (text === undefined) return []
    const statement = byLine.get(i)
    if (!statement) throw new Error(`'${line.trim()}': only the value of an expression can be told`)
    return [{ from: statement.expression.getStart(file), to: statement.expression.getEnd(), text }]
  })
}

/** The code as it is, but that each value which a comment tells is given to `seen(value, text)`, too. */
export function observed(code: string): string {
  let out = code
  for (const { from, to, text } of told(code).reverse())
    out = `${out.slice(0, from)};seen((${out.slice(from, to)}), ${JSON.stringify(text)})${out.slice(to)}`
  return out
}

/** A value as comments write it: lists in brackets, all else as `String` gives it. */
export function shown(value: unknown): string {
  if (Array.isArray(value) || (ArrayBuffer.isView(value) && 'length' in value))
    return `[${Array.from(value as ArrayLike<unknown>, shown).join(', ')}]`
  return String(value)
}

/** What the compiler, in strict mode, says of each example. */
export function typeErrors(all: readonly Example[]): Map<string, string[]> {
  const named = new Map(all.map((example, i) => [join(root, 'docs', `example-${i}.ts`), example]))
  const options: ts.CompilerOptions = {
    noEmit: true,
    strict: true,
    exactOptionalPropertyTypes: true,
    // Not noUncheckedIndexedAccess: `const [a, b] = x.split(1)` is how one writes it.
    noImplicitOverride: true,
    allowImportingTsExtensions: true,
    target: ts.ScriptTarget.ES2022,
    module: ts.ModuleKind.ESNext,
    moduleResolution: ts.ModuleResolutionKind.Bundler,
    lib: ['lib.es2023.d.ts', 'lib.esnext.disposable.d.ts', 'lib.dom.d.ts'],
    types: ['node', '@webgpu/types'],
    skipLibCheck: true,
    paths: {
      tilegrad: [join(root, 'packages/tilegrad/src/index.ts')],
      'tilegrad/*': [join(root, 'packages/tilegrad/src/*.ts')],
      '@tilegrad/core/formula': [join(root, 'packages/core/src/formula.ts')],
      '@tilegrad/core/kernel': [join(root, 'packages/core/src/kernel.ts')],
      '@tilegrad/core/operands': [join(root, 'packages/core/src/operands.ts')],
      '@tilegrad/*': [join(root, 'packages/*/src/index.ts')],
    },
  }
  const host = ts.createCompilerHost(options)
  const { readFile, fileExists, getSourceFile } = host
  host.readFile = (name) => named.get(name)?.code ?? readFile(name)
  host.fileExists = (name) => named.has(name) || fileExists(name)
  host.getSourceFile = (name, version, ...rest) => {
    const example = named.get(name)
    return example
      ? ts.createSourceFile(name, example.code, version, true)
      : getSourceFile.call(host, name, version, ...rest)
  }
  const program = ts.createProgram([...named.keys()], options, host)
  return new Map(
    [...named].map(([name, { where, code }]) => {
      const file = program.getSourceFile(name)
      const found = [...program.getSyntacticDiagnostics(file), ...program.getSemanticDiagnostics(file)]
      return [
        where,
        found.map((d) => {
          const line = code.split('\n')[code.slice(0, d.start).split('\n').length - 1]
          return `${ts.flattenDiagnosticMessageText(d.messageText, '\n')} in: ${line?.trim()}`
        }),
      ]
    }),
  )
}
