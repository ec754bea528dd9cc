import { execFile } from 'node:child_process'
import {
  copyFileSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import ts from 'typescript'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'

/** What users get: the tarballs that `npm pack` makes, installed in an empty folder. */
const root = fileURLToPath(new URL('..', import.meta.url))
const packages = readdirSync(join(root, 'packages')).map((name) => join(root, 'packages', name))
const run = promisify(execFile)
// Tests may run in Node's environment of another program: npm reads its settings from there.
const env = Object.fromEntries(Object.entries(process.env).filter(([name]) => !/^npm_/i.test(name)))
const folder = mkdtempSync(join(tmpdir(), 'tilegrad-user-'))
afterAll(() => rmSync(folder, { recursive: true, force: true }))

const json = (...path: string[]) => JSON.parse(readFileSync(join(...path), 'utf8'))

/** The folders of packages that are not ours and that come with them. */
function dependencies(): string[] {
  const found = new Set<string>()
  const look = (at: string): void => {
    for (const name of Object.keys(json(at, 'package.json').dependencies ?? {})) {
      const modules = at.includes('node_modules')
        ? join(at, '../'.repeat(name.split('/').length))
        : join(at, 'node_modules')
      const folder = realpathSync(
        [modules, join(at, '..')].map((from) => join(from, name)).find(existsSync) as string,
      )
      if (packages.includes(folder) || found.has(folder)) continue
      found.add(folder)
      look(folder)
    }
  }
  packages.forEach(look)
  return [...found]
}

/** Packs a folder; scripts are not run, since `beforeAll` has built all of them. */
async function pack(from: string): Promise<string> {
  const args = ['pack', '--json', '--ignore-scripts', '--pack-destination', folder]
  const { stdout } = await run('npm', args, { cwd: from, env, maxBuffer: 1 << 26 })
  return join(folder, JSON.parse(stdout)[0].filename.replace('@', '').replace('/', '-'))
}

beforeAll(async () => {
  await run(process.execPath, [join(root, 'node_modules/typescript/bin/tsc'), '-b'], { cwd: root })
  await run(process.execPath, [join(root, 'scripts/bundle.mjs')])
  const tarballs = await Promise.all([...packages, ...dependencies()].map(pack))
  writeFileSync(join(folder, 'package.json'), JSON.stringify({ name: 'user', private: true, type: 'module' }))
  const args = ['install', '--offline', '--ignore-scripts', '--no-audit', '--no-fund', ...tarballs]
  await run('npm', args, { cwd: folder, env })
  copyFileSync(join(root, 'test/packed/program.ts'), join(folder, 'program.ts'))
}, 600_000)

describe.each(packages.map((from) => [json(from, 'package.json').name as string, from] as const))(
  '%s',
  (name, from) => {
    const at = join(folder, 'node_modules', name)

    test('tells what it is', () => {
      const about = json(at, 'package.json')
      expect(about).toMatchObject({
        license: 'MIT',
        author: expect.any(String),
        homepage: expect.stringMatching(/^https:/),
        bugs: expect.stringMatching(/^https:/),
        repository: { type: 'git', directory: from.slice(root.length).replaceAll('\\', '/') },
      })
      expect(about.keywords.length).toBeGreaterThan(4)
      expect(about.description.length).toBeGreaterThan(20)
      expect(JSON.stringify(about)).not.toContain('workspace:')
    })

    test('holds its page, its licence, what has changed, and nothing of the build', () => {
      const files = readdirSync(at)
      expect(files).toEqual(expect.arrayContaining(['CHANGELOG.md', 'LICENSE', 'README.md', 'dist', 'src']))
      expect(readFileSync(join(at, 'README.md'), 'utf8')).toMatch(/npm install [\s\S]*```ts\n/)
      expect(existsSync(join(at, 'dist/.tsbuildinfo'))).toBe(false)
      expect(files).not.toContain('test')
    })
  },
)

const compilers = ['typescript-5.4', 'typescript-5.6', 'typescript-5.9', 'typescript']

test.each(compilers)(
  'a strict program passes %s, with no other package and no library but ES2022',
  async (compiler) => {
    const check = join(root, 'test/packed/check-types.mjs')
    const { stdout } = await run(process.execPath, [check, compiler, join(folder, 'program.ts')])
    expect(stdout).toBe('')
  },
)

test('the versions of compilers are those that are meant', () => {
  const versions = compilers.map((name) => json(root, 'node_modules', name, 'package.json').version as string)
  expect(versions.slice(0, 3).map(Number.parseFloat)).toEqual([5.4, 5.6, 5.9])
  expect(Number.parseFloat(versions[3] as string)).toBeGreaterThanOrEqual(6)
})

test('the program runs', async () => {
  const source = `${readFileSync(join(folder, 'program.ts'), 'utf8')}\nconsole.log(text)\nawait cpu.close()\n`
  const { outputText } = ts.transpileModule(source, {
    compilerOptions: { target: ts.ScriptTarget.ES2022, module: ts.ModuleKind.ESNext },
  })
  writeFileSync(join(folder, 'program.js'), outputText)
  const { stdout } = await run(process.execPath, [join(folder, 'program.js')])
  expect(stdout).toContain('shape=[2, 2]')
})
