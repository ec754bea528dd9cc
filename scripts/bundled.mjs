import { join } from 'node:path'
import { build } from 'esbuild'

/**
 * Bundles a program for browsers as a user would, minified. `first` are the files that it loads at once, `all` also those
 * that it imports when they are needed.
 * @param {string} program
 * @param {string} folder where its imports are looked up
 * @param {string[]} [external]
 */
export async function bundled(program, folder, external = []) {
  const { outputFiles, metafile } = await build({
    stdin: { contents: program, resolveDir: folder },
    absWorkingDir: folder,
    outdir: 'bundle',
    bundle: true,
    splitting: true,
    minify: true,
    write: false,
    metafile: true,
    format: 'esm',
    platform: 'browser',
    target: 'es2022',
    external: ['node:*', 'mathjs', ...external],
    logLevel: 'error',
  })
  const names = Object.keys(metafile.outputs)
  const first = new Set(names.filter((name) => metafile.outputs[name]?.entryPoint === '<stdin>'))
  // What is imported statically, by whom that is.
  for (const name of first)
    for (const { path, kind } of metafile.outputs[name]?.imports ?? [])
      if (kind === 'import-statement' && metafile.outputs[path]) first.add(path)
  /** @param {string[]} paths */
  const contents = (paths) => {
    const wanted = new Set(paths.map((path) => join(folder, path)))
    return outputFiles.filter(({ path }) => wanted.has(path)).map((file) => file.contents)
  }
  return { all: contents(names), first: contents([...first]) }
}
