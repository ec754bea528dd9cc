// Sets up and runs every check, with --tests also the tests. All steps run; one line each; a failure shows its output.
// With --tests and arguments for Vitest (a part of a file's path, -t NAME) it runs those tests alone, and shows them.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { otherNode } from './nodes.mjs'
import { capture, compile, install, program, root, tool } from './setup.mjs'
import { reports, summary } from './summary.mjs'

const [flag, ...chosen] = process.argv.slice(2)
const tests = flag === '--tests'
const [report, otherReport] = reports

function publint() {
  // The types have been built, first of all.
  process.env.TILEGRAD_BUILT = 'yes'
  const outputs = readdirSync(join(root, 'packages'))
    .filter((name) => existsSync(join(root, 'packages', name, 'package.json')))
    .filter((name) => !JSON.parse(readFileSync(join(root, 'packages', name, 'package.json'), 'utf8')).private)
    .map((name) => tool('publint', ['run', join('packages', name), '--pack', 'npm', '--strict']))
  return { ok: outputs.every((result) => result.ok), output: outputs.map((result) => result.output).join('') }
}

const engine = ['--config', 'vitest.engine.config.ts']

/** @param {string} node @param {string} file @param {string[]} options */
function vitest(node, file, options) {
  const reporters = ['--reporter=default', '--reporter=json', `--outputFile.json=${file}`]
  const result = capture(node, [program('vitest'), 'run', ...reporters, ...options])
  return result.ok ? { ...result, note: summary([file]).line } : result
}

/** @returns {[string, () => { ok: boolean, output: string, note?: string }]} */
function testOther() {
  const { name, path, why, missing } = otherNode()
  if (path) return [name, () => vitest(path, otherReport, engine)]
  return [name, () => ({ ok: !missing, output: why, note: `NOT RUN: ${why}` })]
}

/** Shows the tests that match as they run. @param {string[]} args */
function runChosen(args) {
  const build = compile()
  if (!build.ok) console.error(build.output)
  /** @param {string} node @param {string[]} options */
  const run = (node, options) =>
    spawnSync(node, [program('vitest'), 'run', ...options, ...args], { cwd: root, stdio: 'inherit' })
      .status === 0
  const { name, path, why, missing } = otherNode()
  const here = run(process.execPath, [])
  console.log(`Those of them that test the CPU engine, on ${name}${path ? ':' : ` NOT RUN: ${why}`}`)
  const there = path ? run(path, [...engine, '--passWithNoTests']) : !missing
  return build.ok && here && there
}

const colors = process.stdout.isTTY ? 'force' : 'off'
const code = ['packages', 'examples', 'docs', 'test', 'bench']
/** @type {[string, () => { ok: boolean, output: string, note?: string }][]} */
const steps = [
  // Types first: the later steps look at what it builds.
  ['types', () => compile()],
  ['lint', () => tool('@biomejs/biome', ['check', '--error-on-warnings', `--colors=${colors}`])],
  ['imports', () => tool('dependency-cruiser', ['--config', '.dependency-cruiser.mjs', ...code])],
  ['packaging', publint],
  ['api docs', () => tool('typedoc', ['--logLevel', 'Warn'])],
]

install()
mkdirSync(join(root, '.reports'), { recursive: true })
if (chosen.length) process.exit(runChosen(chosen) ? 0 : 1)
for (const file of reports) rmSync(file, { force: true })
if (tests) steps.push(['tests', () => vitest(process.execPath, report, [])], testOther())

let failures = 0
for (const [name, step] of steps) {
  const start = performance.now()
  const { ok, output, note = '' } = step()
  const seconds = ((performance.now() - start) / 1000).toFixed(1)
  console.log(`${ok ? 'ok  ' : 'FAIL'}  ${name.padEnd(12)} ${seconds.padStart(6)} s  ${note}`.trimEnd())
  if (ok) continue
  failures++
  console.log(`\n${output.trimEnd()}\n`)
}
if (failures) console.log(`${failures} of ${steps.length} steps failed`)
process.exitCode = failures ? 1 : 0
