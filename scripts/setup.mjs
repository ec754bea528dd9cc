// Set-up from a bare clone: installs the packages with the pinned pnpm, then builds. Quick when nothing changed.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = fileURLToPath(new URL('..', import.meta.url))

/** @param {string} file */
const json = (file) => JSON.parse(readFileSync(join(root, file), 'utf8'))

/**
 * Runs a command and keeps its output, so that only a failure is shown.
 * @param {string} command
 * @param {string[]} args
 * @param {import('node:child_process').SpawnSyncOptions} [options]
 */
export function capture(command, args, options) {
  const env = {
    ...process.env,
    ...(process.stdout.isTTY ? { FORCE_COLOR: '1' } : { FORCE_COLOR: '0', NO_COLOR: '1' }),
  }
  const result = spawnSync(command, args, {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 1 << 28,
    env,
    ...options,
  })
  const output = `${result.stdout ?? ''}${result.stderr ?? ''}${result.error ? `${result.error}\n` : ''}`
  return { ok: result.status === 0, output }
}

/**
 * The file of an installed package's command line.
 * @param {string} name the package
 */
export function program(name) {
  const { bin } = json(`node_modules/${name}/package.json`)
  const file = typeof bin === 'string' ? bin : (bin[name] ?? Object.values(bin)[0])
  return join(root, 'node_modules', name, file)
}

/**
 * Runs the command line of an installed package with this Node.
 * @param {string} name the package
 * @param {string[]} args
 */
export const tool = (name, args) => capture(process.execPath, [program(name), ...args])

/** @param {{ ok: boolean, output: string }} result @param {string} what */
function exitUnlessOk(result, what) {
  if (result.ok) return
  process.stderr.write(`${result.output}\n${what} failed\n`)
  process.exit(1)
}

export function install() {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number)
  if (major < 20 || (major === 20 && minor < 19)) {
    console.error(`tilegrad needs Node 20.19 or newer; this is ${process.version}`)
    process.exit(1)
  }
  const lock = createHash('sha256')
    .update(readFileSync(join(root, 'pnpm-lock.yaml')))
    .digest('hex')
  // The platform too: some development tools are installed per platform.
  const state = `${lock} ${process.platform} ${process.arch}\n`
  const stamp = join(root, 'node_modules', '.setup-stamp')
  if (existsSync(stamp) && readFileSync(stamp, 'utf8') === state) return
  console.error('Installing packages ...')
  const pnpm = json('package.json').packageManager
  // A shell finds npx on every system (npx.cmd on Windows); CI keeps pnpm from asking questions.
  const command = `npx --yes ${pnpm} install --frozen-lockfile`
  exitUnlessOk(capture(command, [], { shell: true, env: { ...process.env, CI: 'true' } }), command)
  writeFileSync(stamp, state)
}

/** Compiles projects (all, if none is named), then makes of each package's modules one file for Node. @param {string[]} projects */
export function compile(...projects) {
  const compiled = tool('typescript', ['-b', ...projects])
  return compiled.ok ? capture(process.execPath, [join(root, 'scripts', 'bundle.mjs')]) : compiled
}

/** Builds every package and the example. */
export function build() {
  exitUnlessOk(compile('examples/tiny-transformer'), 'The build')
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  install()
  build()
}
