/**
 * Runs code in a headless browser: bundled by Vite from the sources, served cross-origin isolated (so that
 * SharedArrayBuffer is there), with WebGPU in software.
 */
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { dirname, extname } from 'node:path'
import { fileURLToPath } from 'node:url'
import { type Browser, chromium as playwright } from 'playwright-core'
import { build, type Rollup } from 'vite'
import { chromium, usable } from '../../scripts/chromium.mjs'
import config from '../../vitest.config.ts'

export interface BrowserOptions {
  /** Given to the page's `run`; anything JSON can carry. */
  readonly argument?: unknown
  /** How long the page may take, in milliseconds; default 60,000. */
  readonly timeout?: number
  /** Flags of Chromium, besides ours. */
  readonly flags?: readonly string[]
}

const FLAGS = [
  '--enable-unsafe-webgpu',
  '--use-webgpu-adapter=swiftshader',
  // It runs our own page only, and as root in containers.
  '--no-sandbox',
  // No traffic of its own.
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
]

const TYPES: Readonly<Record<string, string>> = {
  '.html': 'text/html',
  '.js': 'text/javascript',
  '.wasm': 'application/wasm',
}

/** A program for the page: one script for all of it, and whatever files it loads later, by path. */
export type Site = ReadonlyMap<string, string | Uint8Array>

/**
 * Bundles a page whose module exports `run(argument)`.
 *
 * @param entry the module, as a URL or path
 */
export async function bundle(entry: URL | string): Promise<Site> {
  const file = entry instanceof URL ? fileURLToPath(entry) : entry
  const page = 'virtual:page'
  const result = (await build({
    configFile: false,
    root: dirname(file),
    logLevel: 'error',
    resolve: { alias: config.resolve?.alias ?? [] },
    plugins: [
      {
        name: 'page',
        resolveId: (id) => (id === page ? id : null),
        load: (id) =>
          id === page
            ? `import { run } from ${JSON.stringify(file)}\nglobalThis.runPage = async (argument) => run(argument)`
            : null,
      },
    ],
    build: {
      write: false,
      target: 'esnext',
      // Errors show the code as it is written.
      minify: false,
      // A fallback to what the page cannot load would be an error on its console.
      modulePreload: false,
      rollupOptions: {
        input: page,
        output: { entryFileNames: 'page.js' },
        onwarn(warning) {
          throw new Error(`the bundle of ${file} warns: ${warning.message}`)
        },
      },
    },
  })) as Rollup.RollupOutput
  const site = new Map<string, string | Uint8Array>()
  site.set(
    '/',
    '<!doctype html><link rel="icon" href="data:,"><script type="module" src="/page.js"></script>',
  )
  for (const part of result.output)
    site.set(`/${part.fileName}`, part.type === 'chunk' ? part.code : part.source)
  return site
}

/** Serves a site to this machine, with the headers that isolate it. */
async function serve(site: Site) {
  const server = createServer((request, response) => {
    const path = new URL(request.url ?? '/', 'http://localhost').pathname
    const body = site.get(path)
    response.writeHead(body === undefined ? 404 : 200, {
      'Content-Type': TYPES[extname(path) || '.html'] ?? 'application/octet-stream',
      'Cross-Origin-Opener-Policy': 'same-origin',
      'Cross-Origin-Embedder-Policy': 'require-corp',
    })
    response.end(body)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    close() {
      server.closeAllConnections()
      server.close()
    },
  }
}

/** TILEGRAD_BROWSER names an installed Chrome or Chromium; without it the one from npm, which is for Linux on x64. */
async function launch(flags: readonly string[]): Promise<Browser> {
  const args = [...FLAGS, ...flags]
  const own = process.env.TILEGRAD_BROWSER
  if (own) return playwright.launch({ executablePath: own, args })
  if (!usable)
    throw new Error(
      `no browser for ${process.platform}-${process.arch}: set TILEGRAD_BROWSER to the path of a Chrome or Chromium`,
    )
  const { executable, libraries, fonts } = chromium()
  const env = { ...process.env, LD_LIBRARY_PATH: libraries, FONTCONFIG_PATH: fonts } as Record<string, string>
  return playwright.launch({ executablePath: executable, args, env })
}

/**
 * Runs a page and returns what its `run` returned. Whatever the page writes to the console as an error, throws or
 * fails to load, fails the call.
 *
 * @param entry a module that exports `run(argument)`, as a URL or path
 *
 * @example
 * const sum = await runInBrowser<number>(new URL('./pages/sum.ts', import.meta.url), { argument: [1, 2] })
 */
export async function runInBrowser<T>(entry: URL | string, options: BrowserOptions = {}): Promise<T> {
  const { argument, timeout = 240_000, flags = [] } = options
  const server = await serve(await bundle(entry))
  let browser: Browser | undefined
  try {
    browser = await launch(flags)
    const page = await browser.newPage()
    page.setDefaultTimeout(timeout)
    const complaints: string[] = []
    page.on('console', (message) => {
      if (message.type() === 'error') complaints.push(message.text())
    })
    page.on('pageerror', (error) => complaints.push(error.stack ?? String(error)))
    const failed = () => new Error(`the browser's console has errors:\n${complaints.join('\n')}`)
    await page.goto(server.url)
    // Modules have run when `load` fires.
    const result = page.evaluate((given) => {
      const { runPage } = globalThis as unknown as { runPage?: (argument: unknown) => Promise<unknown> }
      if (!runPage) throw new Error('the page did not load')
      return runPage(given)
    }, argument)
    const late = new Promise<never>((_, reject) => {
      const stop = () => reject(new Error(`the page took more than ${timeout} ms`))
      setTimeout(stop, timeout).unref()
    })
    const outcome = await Promise.race([result, late]).then(
      (value) => ({ value: value as T }),
      (error: unknown) => ({ error }),
    )
    // Errors on the console come first: they tell more.
    if (complaints.length) throw failed()
    if ('error' in outcome) throw outcome.error
    return outcome.value
  } finally {
    await browser?.close()
    server.close()
  }
}
