import { existsSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import ts from 'typescript'

/** The package, and what its own compiler options are. */
export const packageRoot = fileURLToPath(new URL('../..', import.meta.url))
const { options } = ts.parseJsonConfigFileContent(
  ts.readConfigFile(join(packageRoot, 'tsconfig.json'), ts.sys.readFile).config,
  ts.sys,
  packageRoot,
)

/** What an editor shows of one name in a program. */
export interface Shown {
  /** The first line of a hover: name and types. */
  readonly display: string
  /** The text and the tags (example, throws …) of the hover. */
  readonly documentation: string
  /** The text and the tags that go with the name in a list of completions. */
  readonly completion: string
  /** Files where "go to definition" lands. */
  readonly definitions: readonly string[]
  /** The names of the parameters of each signature, as they are shown while arguments are typed. */
  readonly parameters: readonly (readonly string[])[]
}

const text = (parts: readonly ts.SymbolDisplayPart[] | undefined): string =>
  ts.displayPartsToString([...(parts ?? [])])
const withTags = (
  documentation: readonly ts.SymbolDisplayPart[] | undefined,
  tags: readonly ts.JSDocTagInfo[] | undefined,
): string =>
  [text(documentation), ...(tags ?? []).map((tag) => `@${tag.name} ${text(tag.text)}`)].join('\n').trim()

/**
 * The declaration files of the package, as its compiler writes them, by their paths. Not those in dist: they may be
 * older than the sources.
 */
export function declarations(): Map<string, string> {
  const files = new Map<string, string>()
  const program = ts.createProgram([join(packageRoot, 'src/index.ts')], {
    ...options,
    composite: false,
    incremental: false,
    emitDeclarationOnly: true,
    declarationMap: false,
  })
  program.emit(undefined, (name, content) => files.set(name, content))
  return files
}

/** Asks TypeScript's language service, which editors ask, about a program beside the package's files. */
export class Editor {
  readonly #file = join(packageRoot, 'test/program-in-an-editor.ts')
  readonly #source: string
  readonly #service: ts.LanguageService

  constructor(source: string, extra: ReadonlyMap<string, string> = new Map()) {
    this.#source = source
    const read = (name: string): string | undefined =>
      name === this.#file
        ? source
        : (extra.get(name) ?? (existsSync(name) ? readFileSync(name, 'utf8') : undefined))
    const folders = new Set([...extra.keys()].map(dirname))
    this.#service = ts.createLanguageService({
      getScriptFileNames: () => [this.#file],
      getScriptVersion: () => '1',
      getScriptSnapshot: (name) => {
        const content = read(name)
        return content === undefined ? undefined : ts.ScriptSnapshot.fromString(content)
      },
      getCurrentDirectory: () => packageRoot,
      getCompilationSettings: () => ({ ...options, composite: false, noEmit: true, rootDir: packageRoot }),
      getDefaultLibFileName: ts.getDefaultLibFilePath,
      fileExists: (name) => name === this.#file || extra.has(name) || ts.sys.fileExists(name),
      readFile: read,
      readDirectory: ts.sys.readDirectory,
      directoryExists: (name) => folders.has(name) || ts.sys.directoryExists(name),
      getDirectories: ts.sys.getDirectories,
    })
  }

  /** What the compiler says about the program. */
  errors(): string[] {
    return [
      ...this.#service.getSyntacticDiagnostics(this.#file),
      ...this.#service.getSemanticDiagnostics(this.#file),
    ].map((d) => ts.flattenDiagnosticMessageText(d.messageText, '\n'))
  }

  /** What is shown of `name` where it stands in a line behind `before`; the line may go on with its call. */
  show(before: string, name: string): Shown {
    const line = new RegExp(`^;?${before.replace('.', '\\.')}${name}\\b`, 'm').exec(this.#source)
    if (!line) throw new Error(`no line begins with ${before}${name}`)
    const at = line.index + line[0].length - name.length
    const info = this.#service.getQuickInfoAtPosition(this.#file, at)
    const entry = this.#service.getCompletionEntryDetails(this.#file, at, name, {}, undefined, {}, undefined)
    const help = this.#service.getSignatureHelpItems(this.#file, at + name.length + 1, {})
    return {
      display: text(info?.displayParts),
      documentation: withTags(info?.documentation, info?.tags),
      completion: withTags(entry?.documentation, entry?.tags),
      definitions: (this.#service.getDefinitionAtPosition(this.#file, at) ?? []).map((d) => d.fileName),
      parameters: (help?.items ?? []).map((item) => item.parameters.map((p) => p.name)),
    }
  }
}
