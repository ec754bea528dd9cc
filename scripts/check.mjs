// Sets up and runs every check, with --tests also the tests. All steps run; one line each; a failure shows its output.
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { install, root, tool } from './setup.mjs'
import { report, summary } from './summary.mjs'

const tests = process.argv.includes('--tests')

function publint() {
  const outputs = readdirSync(join(root, 'packages'))
    .filter((name) => existsSync(join(root, 'packages', name, 'package.json')))
    .filter((name) => !JSON.parse(readFileSync(join(root, 'packages', name, 'package.json'), 'utf8')).private)
    .map((name) => tool('publint', ['run', join('packages', name), '--pack', 'npm', '--strict']))
  return { ok: outputs.every((result) => result.ok), output: outputs.map((result) => result.output).join('') }
}

function vitest() {
  const result = tool('vitest', [
    'run',
    '--reporter=default',
    '--reporter=json',
    `--outputFile.json=${report}`,
  ])
  return result.ok ? { ...result, note: summary().line } : result
}

const colors = process.stdout.isTTY ? 'force' : 'off'
const code = ['packages', 'examples', 'docs', 'test', 'bench']
/** @type {[string, () => { ok: boolean, output: string, note?: string }][]} */
const steps = [
  // Types first: the later steps look at what it builds.
  ['types', () => tool('typescript', ['-b'])],
  ['lint', () => tool('@biomejs/biome', ['check', '--error-on-warnings', `--colors=${colors}`])],
  ['imports', () => tool('dependency-cruiser', ['--config', '.dependency-cruiser.mjs', ...code])],
  ['packaging', publint],
  ['api docs', () => tool('typedoc', ['--logLevel', 'Warn'])],
]
if (tests) steps.push(['tests', vitest])

install()
rmSync(report, { force: true })
mkdirSync(join(root, '.reports'), { recursive: true })

let failures = 0
for (const [name, step] of steps) {
  const start = performance.now()
  const { ok, output, note = '' } = step()
  const seconds = ((performance.now() - start) / 1000).toFixed(1)
  console.log(`${ok ? 'ok  ' : 'FAIL'}  ${name.padEnd(10)} ${seconds.padStart(6)} s  ${note}`.trimEnd())
  if (ok) continue
  failures++
  console.log(`\n${output.trimEnd()}\n`)
}
if (failures) console.log(`${failures} of ${steps.length} steps failed`)
process.exitCode = failures ? 1 : 0
